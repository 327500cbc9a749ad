// Shows a command's output as it comes, and keeps a file of its result.

import { Sandbox } from "@opencomputer/sdk";

await using sandbox = await Sandbox.create({ timeout: 300 });
const command = "for i in 1 2 3; do echo line $i; sleep 0.2; done; seq 1000 > numbers";
for await (const piece of sandbox.exec.stream(command)) {
  if (piece.type === "exit") console.log("exit code", piece.exitCode);
  else process.stdout.write(piece.data);
}
let bytes = 0;
for await (const piece of await sandbox.files.readStream("numbers")) bytes += piece.length;
console.log(`numbers has ${bytes} bytes`);
