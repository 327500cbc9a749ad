// SecretStore: the whole class.

import assert from "node:assert/strict";
import { check } from "./harness.mjs";

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
const NAME = "typescript-store";
const VALUE = "value-that-no-route-may-return";

export async function stores({ SecretStore }) {
  const store = await check("SecretStore.create", "every field of SecretStoreInfo", async () => {
    const created = await SecretStore.create({ name: NAME, egressAllowlist: ["api.example.test"] });
    for (const field of ["id", "orgId"]) assert.match(created[field], UUID, field);
    assert.equal(created.name, NAME);
    assert.deepEqual(created.egressAllowlist, ["api.example.test"]);
    for (const field of ["createdAt", "updatedAt"]) {
      assert.ok(Math.abs(Date.now() - Date.parse(created[field])) < 60_000, field);
    }
    return created;
  });
  if (!store) return;
  await check("SecretStore.create", "a name once, and never none", async () => {
    await assert.rejects(SecretStore.create({ name: NAME }), /409 .*name already exists/);
    await assert.rejects(SecretStore.create({ name: "" }), /400 .*name is required/);
  });
  await check("SecretStore.create", "without an allowlist", async () => {
    const open = await SecretStore.create({ name: `${NAME}-open` });
    assert.deepEqual(open.egressAllowlist, []);
    await SecretStore.delete(open.id);
  });
  await check("SecretStore.list", "holds it, by name", async () => {
    const names = (await SecretStore.list()).map((one) => one.name);
    assert.ok(names.includes(NAME));
    assert.deepEqual(names, [...names].sort());
  });
  await check("SecretStore.get", "the same, and 404", async () => {
    assert.deepEqual(await SecretStore.get(store.id), store);
    await assert.rejects(SecretStore.get("00000000-0000-7000-8000-000000000000"), /404/);
    await assert.rejects(SecretStore.get("nope"), /400/);
  });
  await check("SecretStore.update", "only what is passed changes", async () => {
    const renamed = await SecretStore.update(store.id, { name: `${NAME}-2` });
    assert.equal(renamed.name, `${NAME}-2`);
    assert.deepEqual(renamed.egressAllowlist, store.egressAllowlist);
    const hosts = ["api.example.test", "*.example.org"];
    const listed = await SecretStore.update(store.id, { egressAllowlist: hosts });
    assert.equal(listed.name, `${NAME}-2`);
    assert.deepEqual(listed.egressAllowlist, hosts);
    const cleared = await SecretStore.update(store.id, { egressAllowlist: [] });
    assert.deepEqual(cleared.egressAllowlist, []);
    assert.equal(cleared.createdAt, store.createdAt);
  });
  await check("SecretStore.setSecret", "new, replaced, restricted", async () => {
    await SecretStore.setSecret(store.id, "B_KEY", VALUE);
    await SecretStore.setSecret(store.id, "B_KEY", `${VALUE}-2`);
    await SecretStore.setSecret(store.id, "A_KEY", VALUE, { allowedHosts: ["api.example.test"] });
  });
  await check("SecretStore.setSecret", "refusals", async () => {
    await assert.rejects(SecretStore.setSecret(store.id, "EMPTY", ""), /400/);
    await assert.rejects(SecretStore.setSecret(store.id, "1BAD-NAME", "x"), /400/);
    const hosts = { allowedHosts: [""] };
    await assert.rejects(SecretStore.setSecret(store.id, "A_KEY", "x", hosts), /400/);
  });
  await check("SecretStore.listSecrets", "every field, by name, no value", async () => {
    const entries = await SecretStore.listSecrets(store.id);
    assert.deepEqual(entries.map((one) => one.name), ["A_KEY", "B_KEY"]);
    assert.deepEqual(entries.map((one) => one.allowedHosts), [["api.example.test"], []]);
    for (const entry of entries) {
      assert.match(entry.id, UUID);
      assert.equal(entry.storeId, store.id);
      assert.ok(Date.parse(entry.createdAt) <= Date.parse(entry.updatedAt));
    }
    assert.ok(!JSON.stringify(entries).includes(VALUE));
  });
  await check("SecretStore.deleteSecret", "one, and one that is not there", async () => {
    await SecretStore.deleteSecret(store.id, "B_KEY");
    await SecretStore.deleteSecret(store.id, "B_KEY");
    const names = (await SecretStore.listSecrets(store.id)).map((one) => one.name);
    assert.deepEqual(names, ["A_KEY"]);
  });
  await check("SecretStore.delete", "with all its entries", async () => {
    await SecretStore.delete(store.id);
    await assert.rejects(SecretStore.get(store.id), /404/);
    await assert.rejects(SecretStore.listSecrets(store.id), /404/);
  });
}
