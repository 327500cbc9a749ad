// Tries two things from the same state: a checkpoint, and a fork for each.

import { Sandbox } from "@opencomputer/sdk";

await using base = await Sandbox.create();
await base.files.write("config", "colour=blue\n");
const checkpoint = await base.createCheckpoint("configured");
const tries = ["green", "red"].map(async (colour) => {
  await using fork = await Sandbox.createFromCheckpoint(checkpoint.id);
  await fork.exec.run(`sed -i s/blue/${colour}/ config`);
  return (await fork.files.read("config")).trim();
});
console.log(await Promise.all(tries), "while the first one has", (await base.files.read("config")).trim());
