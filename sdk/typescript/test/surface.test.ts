// Goal: every name of the API's description is there, with the number of arguments it takes.

import assert from "node:assert/strict";
import { test } from "node:test";
import * as sdk from "@opencomputer/sdk";

const STATICS: Record<string, string> = {
  Project: "create list get update delete setSecret listSecrets deleteSecret",
  SecretStore: "create list get update delete setSecret listSecrets deleteSecret",
  Sandbox: "create connect createFromCheckpoint createCheckpointPatch listCheckpointPatches " +
    "deleteCheckpointPatch",
  Image: "base",
};
const METHODS: Record<string, string> = {
  Sandbox: "kill isRunning hibernate wake setTimeout createCheckpoint listCheckpoints " +
    "restoreCheckpoint deleteCheckpoint createPreviewURL listPreviewURLs deletePreviewURL " +
    "getPreviewDomain rotatePreviewAuthToken reboot powerCycle scale setAutoscale getAutoscale " +
    "setScalingLock getScalingLock getAllowedHosts downloadUrl uploadUrl",
  Exec: "run start background attach list kill shell reattachShell",
  ExecSession: "sendStdin kill close",
  Shell: "run close",
  Filesystem: "read readBytes write list makeDir remove exists",
  Pty: "create",
  PtySession: "send close",
  Agent: "start attach list",
  AgentSession: "sendPrompt interrupt configure kill close",
  Image: "aptInstall pipInstall runCommands env workdir addFile addLocalFile addLocalDir " +
    "builderMemory toJSON cacheKey",
  Snapshots: "create list get delete waitUntilReady",
  Webhooks: "create list get getSecret update delete test",
  WebhookDeliveries: "list get redeliver",
  Usage: "bySandbox byTag forSandbox",
  Tags: "listKeys get set",
  Templates: "build list get delete",
  Mounts: "add list remove",
};

test("every class and method is there", () => {
  const all = sdk as unknown as Record<string, { prototype: Record<string, unknown> }>;
  const missing: string[] = [];
  for (const [table, of] of [[STATICS, false], [METHODS, true]] as const) {
    for (const [kind, names] of Object.entries(table)) {
      for (const name of names.split(" ")) {
        const owner = (of ? all[kind]?.prototype : all[kind]) as Record<string, unknown> | undefined;
        if (typeof owner?.[name] !== "function") missing.push(`${kind}.${name}`);
      }
    }
  }
  assert.deepEqual(missing, []);
  assert.equal(typeof sdk.verifyWebhook, "function");
});
