// Goal: the examples run.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";

const EXPECTED = {
  quickstart: /^exit code 0: inside, the key is osb_sealed_[0-9a-f]{32}\n$/,
  stream: /^line 1\nline 2\nline 3\nexit code 0\nnumbers has 3893 bytes\n$/,
  branches: /^\[ 'colour=green', 'colour=red' \] while the first one has colour=blue\n$/,
};

for (const [name, printed] of Object.entries(EXPECTED)) {
  test(name, () => {
    const file = `build/examples/${name}.js`;
    const done = spawnSync(process.execPath, [file], { encoding: "utf8", timeout: 60_000 });
    assert.equal(done.status, 0, done.stderr);
    assert.match(done.stdout, printed);
  });
}
