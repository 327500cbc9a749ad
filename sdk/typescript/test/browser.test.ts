// Goal: without Node.js's modules the package still does everything but local files and cache keys.
// Method: it is loaded where only a browser's globals are, and driven against the real server.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { skip } from "./support.js";

test("with a browser's globals alone", (t) => {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major < 20 || (major === 20 && minor < 10)) {
    return skip(t, "this Node.js has no WebSocket of its own");
  }
  const flags = ["--no-warnings", "--experimental-vm-modules"];
  if (major < 22) flags.push("--experimental-websocket");
  const file = join(import.meta.dirname ?? join(process.cwd(), "build", "test"), "browser-child.js");
  const done = spawnSync(process.execPath, [...flags, file], { encoding: "utf8", timeout: 60_000 });
  assert.equal(done.status, 0, done.stderr);
  assert.equal(done.stdout.trim(), "all is well");
});
