"""SecretStore: the whole class."""

import json
import re

from harness import check, refused

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
VALUE = "value-that-no-route-may-return"


async def run(SecretStore, name):
    store = None
    async with check("SecretStore.create", "every field"):
        store = await SecretStore.create(name=name, egress_allowlist=["api.example.test"])
        assert UUID.fullmatch(store["id"]) and UUID.fullmatch(store["orgId"])
        assert (store["name"], store["egressAllowlist"]) == (name, ["api.example.test"])
        assert store["createdAt"] and store["updatedAt"]
    if store is None:
        return
    async with check("SecretStore.create", "a name once, and never none"):
        async with refused("409.*name already exists"):
            await SecretStore.create(name)
        async with refused("400.*name is required"):
            await SecretStore.create("")
    async with check("SecretStore.list", "holds it, by name"):
        names = [one["name"] for one in await SecretStore.list()]
        assert name in names and names == sorted(names)
    async with check("SecretStore.get", "the same, and 404"):
        assert await SecretStore.get(store["id"]) == store
        async with refused("404"):
            await SecretStore.get("00000000-0000-7000-8000-000000000000")
    async with check("SecretStore.update", "only what is passed changes"):
        renamed = await SecretStore.update(store["id"], name=f"{name}-2")
        assert renamed["name"] == f"{name}-2"
        assert renamed["egressAllowlist"] == store["egressAllowlist"]
        hosts = ["api.example.test", "*.example.org"]
        listed = await SecretStore.update(store["id"], egress_allowlist=hosts)
        assert listed["egressAllowlist"] == hosts
        cleared = await SecretStore.update(store["id"], egress_allowlist=[])
        assert (cleared["egressAllowlist"], cleared["name"]) == ([], f"{name}-2")
    async with check("SecretStore.set_secret", "new, replaced, restricted"):
        await SecretStore.set_secret(store["id"], "B_KEY", VALUE)
        await SecretStore.set_secret(store["id"], "B_KEY", VALUE + "-2")
        await SecretStore.set_secret(
            store["id"], "A_KEY", VALUE, allowed_hosts=["api.example.test"]
        )
    async with check("SecretStore.set_secret", "refusals"):
        for bad in (("EMPTY", ""), ("1BAD-NAME", "x")):
            async with refused("400"):
                await SecretStore.set_secret(store["id"], *bad)
    async with check("SecretStore.list_secrets", "every field, by name, no value"):
        entries = await SecretStore.list_secrets(store["id"])
        assert [one["name"] for one in entries] == ["A_KEY", "B_KEY"]
        assert [one["allowedHosts"] for one in entries] == [["api.example.test"], []]
        assert all(UUID.fullmatch(one["id"]) and one["storeId"] == store["id"] for one in entries)
        assert VALUE not in json.dumps(entries)
    async with check("SecretStore.delete_secret", "one, and one that is not there"):
        await SecretStore.delete_secret(store["id"], "B_KEY")
        await SecretStore.delete_secret(store["id"], "B_KEY")
        assert [one["name"] for one in await SecretStore.list_secrets(store["id"])] == ["A_KEY"]
    async with check("SecretStore.delete", "with all its entries"):
        await SecretStore.delete(store["id"])
        async with refused("404"):
            await SecretStore.get(store["id"])
