// Goal: the code samples of the documents run as they are written.
// Method: each one is a module of its own, compiled unchanged; only names of things that the reader
// has to have (ids, and the upstream's port) are filled in when it is run.

import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { after, test, type TestContext } from "node:test";
import {
  ApiError, BuildError, Project, Sandbox, SecretStore, Snapshots, type ExecSession, type Image,
  type ProcessResult, type ProjectInfo, type SecretEntryInfo, type SecretStoreInfo,
} from "@opencomputer/sdk";
import { need, note, skip } from "./support.js";

const FOLDER = join(process.cwd(), "build", "samples");
const TOKEN = /^osb_sealed_[0-9a-f]{32}\n$/;
// The samples' own `sk-ant-...` is too easily guessed to be looked for in answers.
const REAL = "sk-ant-of-the-samples-0123456789abcdef";
const made: Sandbox[] = [];

interface Given {
  project: ProjectInfo;
  store: SecretStoreInfo;
  base: Sandbox;
  /** Of the spare one, for samples that delete. */
  checkpoint: string;
  patch: string;
}

/** What the documents' reader has: a project, a store, a sandbox, a checkpoint with a patch. */
async function reader(): Promise<Given> {
  for (const { id, name } of await Project.list()) if (name === "my-agent") await Project.delete(id);
  for (const { id, name } of await SecretStore.list()) {
    if (NAMES.includes(name)) await SecretStore.delete(id);
  }
  const project = await Project.create({ name: "my-agent", cpuCount: 2, memoryMB: 1024 });
  for (const name of ["ANTHROPIC_API_KEY", "DATABASE_URL"]) {
    await Project.setSecret(project.id, name, REAL);
  }
  const store = await SecretStore.create({ name: "my-agent-secrets" });
  await SecretStore.setSecret(store.id, "ANTHROPIC_API_KEY", REAL, {
    allowedHosts: ["api.anthropic.com"],
  });
  for (const name of ["git-creds", "worker-keys", "worker-1-keys", "worker-2-keys"]) {
    const { id } = await SecretStore.create({ name });
    await SecretStore.setSecret(id, "TOKEN_OF", `value of ${name}`);
  }
  shared ??= await shareable();
  return { project, store, ...shared };
}

const WITHOUT_PACKAGES = {
  "aptInstall(['python3-pip'])": "runCommands('true')",
  "pipInstall(['pandas'])": "env({ PACKAGES: 'none' })",
};
const NAMES = [
  "my-agent-secrets", "new-name", "git-creds", "worker-keys", "worker-1-keys", "worker-2-keys",
];
let shared: Omit<Given, "project" | "store"> | undefined;

async function shareable(): Promise<Omit<Given, "project" | "store">> {
  const base = await Sandbox.create({ memoryMB: 512 });
  made.push(base);
  const test = JSON.stringify({ name: "app", scripts: { test: "echo tested" } });
  await base.files.write("/app/package.json", test);
  await base.files.write("server.js", "console.log('served')");
  const checkpoint = (await base.createCheckpoint("of the samples")).id;
  await base.waitForCheckpoint(checkpoint);
  const script = "echo patched > /etc/patched";
  const { patch } = await Sandbox.createCheckpointPatch(checkpoint, { script });
  return { base, checkpoint, patch: patch.id };
}

after(async () => {
  await Promise.all(made.map((one) => one.kill()));
});

/** Runs one sample; gives what it declared. */
async function run(
  name: string,
  given: Given,
  others: Record<string, string> = {},
): Promise<Record<string, unknown>> {
  const upstream = `https://api.anthropic.com:${need("OC_STANDIN_PORT")}`;
  const placeholders: Record<string, string> = {
    "project-uuid": given.project.id,
    "store-uuid": given.store.id,
    "sb-abc123": given.base.sandboxId,
    "cp-abc123": given.checkpoint,
    "cp-abc": given.checkpoint,
    "pa-xyz": given.patch,
    "my-stack": "base",
    // Packages come from elsewhere: what is installed is of no matter here.
    "apt install -y curl": "true",
    "https://api.anthropic.com": upstream,
    ...others,
  };
  let code = readFileSync(join(FOLDER, `${name}.js`), "utf8");
  for (const [word, value] of Object.entries(placeholders)) code = code.replaceAll(word, value);
  const file = join(FOLDER, `${name}.${Object.keys(others).length}.mjs`);
  writeFileSync(file, code);
  (globalThis as { sandbox?: Sandbox }).sandbox = given.base;
  const values = (await import(pathToFileURL(file).href)) as Record<string, unknown>;
  for (const value of Object.values(values)) {
    if (value instanceof Sandbox && value.sandboxId !== given.base.sandboxId) made.push(value);
  }
  return values;
}

function names(document: string): string[] {
  assert.ok(existsSync(FOLDER), "samples are compiled");
  const all = readdirSync(FOLDER).filter((file) => /^.*-\d\d\.js$/.test(file));
  return all.filter((file) => file.startsWith(document)).map((file) => file.slice(0, -3)).sort();
}

type Check = (values: Record<string, unknown>, given: Given) => unknown;

/** Runs a document's samples in order; `checks` holds what each must have come to. */
async function follow(t: TestContext, document: string, checks: Check[]): Promise<void> {
  const samples = names(document);
  assert.equal(samples.length, checks.length, "each sample has its check");
  for (const [index, name] of samples.entries()) {
    await t.test(name, async (t) => {
      const given = await reader();
      // The samples that create them start without.
      const code = readFileSync(join(FOLDER, `${name}.js`), "utf8");
      if (/Project\s*\.\s*create/.test(code)) await Project.delete(given.project.id);
      if (/SecretStore\s*\.\s*create/.test(code)) await SecretStore.delete(given.store.id);
      try {
        const values = await run(name, given).catch((error: unknown) => {
          if (!(error instanceof BuildError && /apt_install/.test(error.message))) throw error;
          // Sandboxes of this machine reach no packages: the rest of the sample runs without.
          note(t, "packages can't be fetched here; the image is built without them");
          return run(name, given, WITHOUT_PACKAGES);
        });
        await checks[index]?.(values, given);
      } catch (error) {
        const missing = error instanceof ApiError && [404, 501].includes(error.status);
        const later = /no such route|not supported by this server|not installed/;
        if (!missing || !later.test(error.reason)) throw error;
        skip(t, `this server does not have it: ${error.status} ${error.reason}`);
      }
    });
  }
}

const project = (value: unknown): ProjectInfo => value as ProjectInfo;
const store = (value: unknown): SecretStoreInfo => value as SecretStoreInfo;
const nothing: Check = () => undefined;

const sealed: Check = async ({ result, apiResult }) => {
  assert.match((result as ProcessResult).stdout, TOKEN);
  const { stdout } = apiResult as ProcessResult;
  const token = (result as ProcessResult).stdout.trim();
  // The sample's last word is an address of its own to curl, with an answer of its own.
  assert.ok(stdout.includes(`"x-api-key": "${token}"`), "the echo comes back sealed");
  assert.ok(!stdout.includes(REAL));
  const seen = await (await fetch(`${need("OC_OBSERVER_URL")}/seen/`)).json();
  assert.equal((seen as { headers: Record<string, string> }).headers["x-api-key"], REAL);
};

test("projects", (t) => follow(t, "projects-typescript", [
  (v) => assert.deepEqual([project(v["project"]).cpuCount, project(v["project"]).timeoutSec], [2, 600]),
  (v) => assert.ok((v["projects"] as ProjectInfo[]).some(({ name }) => name === "my-agent")),
  (v, given) => assert.equal(project(v["project"]).id, given.project.id),
  (v) => {
    const { memoryMB, timeoutSec, cpuCount } = project(v["updated"]);
    assert.deepEqual([memoryMB, timeoutSec, cpuCount], [2048, 900, 2]);
  },
  async () => assert.ok((await Project.list()).every(({ name }) => name !== "my-agent")),
  nothing,
  (v) => assert.deepEqual(v["names"], ["ANTHROPIC_API_KEY", "DATABASE_URL"]),
  async (_, given) => {
    assert.deepEqual(await Project.listSecrets(given.project.id), ["ANTHROPIC_API_KEY"]);
  },
  sealed,
]));

test("secret stores", (t) => follow(t, "secret-stores-typescript", [
  (v) => assert.deepEqual(store(v["store"]).egressAllowlist, ["api.anthropic.com"]),
  (v) => assert.equal(store(v["updated"]).name, "new-name"),
  nothing,
  nothing,
  sealed,
  async (v) => {
    const workers = [v["worker1"], v["worker2"]] as Sandbox[];
    const seen = await Promise.all(workers.map((worker) => worker.exec.run("printenv TOKEN_OF")));
    for (const { stdout } of seen) assert.match(stdout, TOKEN);
    assert.notEqual(seen[0]?.stdout, seen[1]?.stdout);
    await (v["snapshots"] as Snapshots).delete("data-pipeline");
  },
  async (v) => {
    const inside = await (v["worker"] as Sandbox).exec.run("printenv TOKEN_OF");
    assert.match(inside.stdout, TOKEN);
    assert.equal((await (v["worker"] as Sandbox).getAllowedHosts()).secretStore, "worker-keys");
  },
]));

test("the reference", (t) => follow(t, "reference-typescript", [
  nothing,
  (v) => assert.equal((v["sandbox"] as Sandbox).status, "running"),
  (v, given) => assert.equal((v["sandbox"] as Sandbox).sandboxId, given.base.sandboxId),
  async (v) => {
    assert.equal(await (v["forked"] as Sandbox).files.read("/etc/patched"), "patched\n");
  },
  (v, given) => {
    assert.equal((v["result"] as { patch: { checkpointId: string } }).patch.checkpointId, given.checkpoint);
  },
  (v) => assert.ok((v["patches"] as unknown[]).length >= 1),
  async (_, given) => {
    const left = await Sandbox.listCheckpointPatches(given.checkpoint);
    assert.ok(left.every(({ id }) => id !== given.patch));
  },
  nothing,
  (v) => assert.match((v["result"] as ProcessResult).stdout, /tested/),
  async (v) => assert.equal(await (v["session"] as ExecSession).done, 0),
  (v) => assert.equal((v["image"] as Image).toJSON().steps.length, 4),
  nothing,
  nothing,
  (v) => assert.deepEqual(store(v["store"]).egressAllowlist, ["api.anthropic.com"]),
  (v) => assert.ok((v["stores"] as unknown[]).length > 0),
  (v, given) => assert.equal(store(v["store"]).id, given.store.id),
  (v) => assert.equal(store(v["updated"]).name, "new-name"),
  async () => assert.ok((await SecretStore.list()).every(({ name }) => name !== "my-agent-secrets")),
  nothing,
  nothing,
  (v) => {
    const [entry] = v["entries"] as SecretEntryInfo[];
    assert.deepEqual(entry?.allowedHosts, ["api.anthropic.com"]);
  },
  nothing,
  sealed,
]));
