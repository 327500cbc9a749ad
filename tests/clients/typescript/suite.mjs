// `@opencomputer/sdk` 0.12.4, imported as its users import it.

import * as sdk from "@opencomputer/sdk/node";
import * as root from "@opencomputer/sdk";
import assert from "node:assert/strict";
import { check, done, everyMethodIsAccountedFor, name } from "./harness.mjs";
import { sandboxes } from "./sandboxes.mjs";
import { exec } from "./exec.mjs";
import { sessions } from "./sessions.mjs";
import { life } from "./life.mjs";
import { checkpoints } from "./checkpoints.mjs";
import { images } from "./images.mjs";
import { files } from "./files.mjs";
import { signed } from "./signed.mjs";
import { terminals } from "./terminals.mjs";
import { stores } from "./stores.mjs";
import { secrets } from "./secrets.mjs";

// The package uses the global WebSocket, which Node has since version 22. It sets its message
// handler only after the open event, so messages must come as tasks of their own, as the standard
// says; `ws` otherwise hands them over together with that event.
const ws = await import("ws");
globalThis.WebSocket ??= class extends ws.WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { allowSynchronousEvents: false });
  }
};

const NOT_YET = [
  "Sandbox.createPreviewURL", "Sandbox.listPreviewURLs", "Sandbox.deletePreviewURL",
  "Sandbox.rotatePreviewAuthToken", "SandboxAgent", "Mounts",
  "Templates", "Webhooks", "WebhookDeliveries", "verifyWebhook", "Usage",
];
// Managed agents and browsers are services of their own (contract, section 30).
const ELSEWHERE = [
  "Browser", "BrowserProfile", "OpenComputer", "Activations", "AgentRepository", "Agents",
  "ClientSession", "Credentials", "Deliveries", "DeploymentSourceResource", "Deployments",
  "Destinations", "GitHub", "GitHubApps", "GitHubInstallations", "Repos", "Revisions",
  "Schedules", "Session", "Sessions", "Skills", "Watches", "connectSession",
  "errorFromResponse",
];
const CLASSES = {
  Sandbox: { type: sdk.Sandbox },
  SecretStore: { type: sdk.SecretStore },
  exec: { type: sdk.Exec, internal: ["headers", "result"] },
  Tags: { type: sdk.Tags, internal: ["headers"] },
  files: { type: sdk.Filesystem, internal: ["headers", "wfetch"] },
  pty: { type: sdk.Pty, internal: ["headers"] },
  Image: { type: sdk.Image },
  Snapshots: { type: sdk.Snapshots, internal: ["headers"] },
};

await check("suite", "both entry points give the same classes", async () => {
  assert.equal(sdk.Sandbox, root.Sandbox);
  assert.equal(sdk.SecretStore, root.SecretStore);
});
const sandbox = await sandboxes(sdk);
const groups = { stores, exec, sessions, terminals, files, life, checkpoints, images, signed, secrets };
for (const [group, run] of Object.entries(groups)) {
  if (sandbox || group === "stores") await run(sdk, sandbox);
  else await check(group, "needs a sandbox", async () => assert.fail("none could be created"));
}
if (sandbox) await sandbox.kill().catch(() => {});
name("not yet", NOT_YET);
name("elsewhere", ELSEWHERE);
const exported = Object.keys(sdk).filter(
  (one) => typeof sdk[one] === "function" && !(sdk[one].prototype instanceof Error),
);
// `exec`, `files` and `pty` stand for their classes.
const accounted = {
  ...CLASSES, Exec: CLASSES.exec, Filesystem: CLASSES.files, Pty: CLASSES.pty,
};
const outside = exported.filter((one) => !(one in accounted));
await everyMethodIsAccountedFor(CLASSES, outside, [...NOT_YET, ...ELSEWHERE]);
done();
process.exit(0); // sockets left open by a failed check must not hold the process
