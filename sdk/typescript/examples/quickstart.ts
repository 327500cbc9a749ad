// Runs a command in a sandbox that holds a sealed secret. `npx tsx quickstart.ts`, or compile it.
//
// OPENCOMPUTER_API_URL and OPENCOMPUTER_API_KEY say which server and who.

import { Project, Sandbox } from "@opencomputer/sdk";

const project = await Project.create({ name: `quickstart-${Date.now()}`, memoryMB: 512 });
try {
  await Project.setSecret(project.id, "API_KEY", "the-real-value", {
    allowedHosts: ["api.example.com"],
  });
  await using sandbox = await Sandbox.create({ project: project.name });
  const { stdout, exitCode } = await sandbox.exec.run('echo "inside, the key is $API_KEY"');
  console.log(`exit code ${exitCode}: ${stdout.trim()}`);
} finally {
  await Project.delete(project.id);
}
