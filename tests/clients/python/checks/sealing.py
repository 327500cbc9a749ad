"""What the platform is for: the token inside, the real value at the API, the token in the echo."""

import json
import os
import re
import secrets

import httpx
from harness import check, eventually, plain

API, OTHER, BLOCKED = os.environ["OC_STANDIN_HOSTS"].split(",")
PORT = os.environ["OC_STANDIN_PORT"]
TOKEN = re.compile(r"osb_sealed_[0-9a-f]{32}")
REAL = "secrets: real at the API, sealed in the echo"
ROTATION_SEC_MAX = 15


def _fresh() -> str:
    return f"real-{secrets.token_hex(16)}"


async def _call(sandbox, host, variable):
    """Calls the stand-in from inside with the secret in a header and in the body."""
    nonce = secrets.token_hex(8)
    result = await sandbox.commands.run(
        f"curl -sS --max-time 20 https://{host}:{PORT}/v1/messages?nonce={nonce} "
        f'-H "x-api-key: ${variable}" -H "content-type: application/json" '
        f'-d "{{\\"key\\":\\"${variable}\\"}}"'
    )
    async with httpx.AsyncClient() as client:
        seen = await client.get(f"{os.environ['OC_OBSERVER_URL']}/seen/{nonce}")
    return result, seen.json() if seen.status_code == 200 else None


async def _token(sandbox, variable):
    return (await sandbox.commands.run(f"printenv {variable}")).stdout.strip()


async def _arrives_real(sandbox, variable, value):
    sealed = await _token(sandbox, variable)
    assert TOKEN.fullmatch(sealed), sealed
    result, arrived = await _call(sandbox, API, variable)
    assert arrived, result.stderr
    assert arrived["headers"]["x-api-key"] == value, "the header at the API"
    assert json.loads(arrived["body"]) == {"key": value}, "the body at the API"
    assert value not in result.stdout, "the real value came back into the sandbox"
    echo = json.loads(result.stdout)["echo"]
    assert echo["headers"]["x-api-key"] == sealed, "the header in the echo"
    assert json.loads(echo["body"]) == {"key": sealed}, "the body in the echo"


async def run(Sandbox, SecretStore, prefix):
    await _of_project(Sandbox, f"{prefix}-project")
    if SecretStore:
        await _of_store(Sandbox, SecretStore, f"{prefix}-sealed")


async def _of_project(Sandbox, name):
    """No published version has a Project class: it is made by plain calls."""
    async with check("secrets: project", "defaults and secrets are inherited"):
        value = _fresh()
        settings = {"cpuCount": 2, "memoryMB": 512, "timeoutSec": 600, "egressAllowlist": [API]}
        status, project = await plain("POST", "/projects", {"name": name} | settings)
        assert status == 201, project
        path = f"/projects/{project['id']}"
        assert (await plain("PUT", f"{path}/secrets/PROJECT_KEY", {"value": value}))[0] == 200
        status, made = await plain("POST", "/sandboxes", {"project": name})
        assert status == 201, made
        async with await Sandbox.connect(made["sandboxID"]) as sandbox:
            assert (made["cpuCount"], made["memoryMB"], made["timeout"]) == (2, 512, 600)
            await _arrives_real(sandbox, "PROJECT_KEY", value)
        await plain("DELETE", path)


async def _of_store(Sandbox, SecretStore, name):
    bound, free = _fresh(), _fresh()
    sandbox = None
    async with check("Sandbox.create", "secret_store"):
        store = await SecretStore.create(name, egress_allowlist=[API, OTHER])
        await SecretStore.set_secret(store["id"], "BOUND", bound, allowed_hosts=[API])
        await SecretStore.set_secret(store["id"], "FREE", free)
        sandbox = await Sandbox.create(secret_store=name)
    if sandbox is None:
        return
    async with check("secrets: sealed in the environment", "token, never the value"):
        shown = (await sandbox.commands.run("env")).stdout
        for variable in ("BOUND", "FREE"):
            assert re.search(rf"^{variable}=osb_sealed_[0-9a-f]{{32}}$", shown, re.MULTILINE)
        assert bound not in shown and free not in shown
    if hasattr(Sandbox, "get_allowed_hosts"):
        async with check("Sandbox.get_allowed_hosts", "with a store"):
            assert await sandbox.get_allowed_hosts() == {
                "sandboxID": sandbox.sandbox_id,
                "secretStore": name,
                "egressAllowlist": [API, OTHER],
                "perSecretAllowedHosts": {"BOUND": [API]},
            }
    async with check(REAL, "bound to the host"):
        await _arrives_real(sandbox, "BOUND", bound)
    async with check(REAL, "bound to no host"):
        await _arrives_real(sandbox, "FREE", free)
    async with check("secrets: another host gets the token", "as it is"):
        sealed = await _token(sandbox, "BOUND")
        _, arrived = await _call(sandbox, OTHER, "BOUND")
        assert arrived["headers"]["x-api-key"] == sealed
    async with check("secrets: a host off the list is refused", "nothing arrives"):
        result, arrived = await _call(sandbox, BLOCKED, "FREE")
        assert arrived is None and result.exit_code != 0
        assert "403" in result.stderr, result.stderr
    async with check("secrets: rotation", "new value, same token"):
        before, rotated = await _token(sandbox, "BOUND"), _fresh()
        await SecretStore.set_secret(store["id"], "BOUND", rotated, allowed_hosts=[API])

        async def arrives():
            _, arrived = await _call(sandbox, API, "BOUND")
            return arrived and arrived["headers"]["x-api-key"] == rotated

        await eventually("the new value arrives", ROTATION_SEC_MAX, arrives)
        assert await _token(sandbox, "BOUND") == before
        await _arrives_real(sandbox, "BOUND", rotated)
    async with check("secrets: deleting the store", "hurts no running sandbox"):
        await SecretStore.delete(store["id"])
        await _arrives_real(sandbox, "FREE", free)
    async with check("Sandbox.kill", "a sandbox with secrets"):
        await sandbox.kill()
        await sandbox.close()
    if "delete_secret_store" in Sandbox.kill.__code__.co_varnames:
        async with check("Sandbox.kill", "delete_secret_store"):
            store = await SecretStore.create(f"{name}-single-use")
            sandbox = await Sandbox.create(secret_store=store["name"])
            await sandbox.kill(delete_secret_store=True)
            await sandbox.close()

            async def gone():
                return (await plain("GET", f"/secret-stores/{store['id']}"))[0] == 404

            await eventually("the store is gone", 5, gone)
