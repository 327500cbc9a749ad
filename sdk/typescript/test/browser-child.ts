// The part of `browser.test.ts` that has no Node.js but for the loader.

import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { createContext, SourceTextModule, type Module } from "node:vm";
import { apiKey, apiUrl } from "./support.js";

const PACKAGE = join(process.cwd(), "node_modules", "@opencomputer", "sdk");
const WEB = [
  "AbortController", "AbortSignal", "Blob", "DOMException", "Headers", "ReadableStream", "Request",
  "Response", "TextDecoder", "TextEncoder", "URL", "URLSearchParams", "WebSocket", "atob", "btoa",
  "clearInterval", "clearTimeout", "crypto", "fetch", "queueMicrotask", "setInterval", "setTimeout",
  "structuredClone",
];
const globals = globalThis as unknown as Record<string, unknown>;
const context = createContext(Object.fromEntries(WEB.map((name) => [name, globals[name]])));
const modules = new Map<string, SourceTextModule>();

function load(file: string): SourceTextModule {
  const known = modules.get(file);
  if (known !== undefined) return known;
  const made = new SourceTextModule(readFileSync(file, "utf8"), { context, identifier: file });
  modules.set(file, made);
  return made;
}

function link(specifier: string, from: Module): SourceTextModule {
  if (specifier.startsWith("node:")) throw new Error(`${from.identifier} needs ${specifier}`);
  // What a bundler takes for a browser.
  if (specifier === "#platform") return load(join(PACKAGE, "dist", "platform", "browser.js"));
  if (specifier === "@opencomputer/sdk") return load(join(PACKAGE, "dist", "index.js"));
  return load(resolve(dirname(from.identifier), specifier));
}

const program = `
import { Image, NotFoundError, Sandbox, ConnectionError } from "@opencomputer/sdk";
const check = (what, well) => { if (!well) throw new Error(what); };
const sandbox = await Sandbox.create({ ...opts, memoryMB: 256 });
try {
  check("run", (await sandbox.exec.run("echo hello")).stdout === "hello\\n");
  await sandbox.files.write("file", "text");
  check("files", (await sandbox.files.read("file")) === "text");
  let out = "";
  for await (const piece of sandbox.exec.stream("echo one; exit 3")) {
    out += piece.type === "exit" ? piece.exitCode : new TextDecoder().decode(piece.data);
  }
  check("stream: " + out, out === "one\\n3");
  const shell = await sandbox.exec.shell();
  check("shell", (await shell.run("cd /tmp; pwd")).stdout === "/tmp\\n");
  await shell.close();
  const pty = await sandbox.pty.create();
  pty.send("echo $((40 + 2)); exit\\r");
  let seen = "";
  for await (const piece of pty) seen += new TextDecoder().decode(piece);
  check("pty: " + seen, seen.includes("42"));
  const refused = await sandbox.exec.attach("00000000").catch((error) => error);
  check("a refused socket is an error", refused instanceof ConnectionError);
  check("its text has no key", !String(refused).includes(opts.apiKey));
  const missing = await Sandbox.connect("sb-00000000000000000000000000", opts).catch((e) => e);
  check("errors", missing instanceof NotFoundError);
  check("images", Image.base().addFile("/f", "x").toJSON().steps.length === 1);
} finally {
  await sandbox.kill();
}
`;

Object.assign(context, { opts: { apiUrl: apiUrl(), apiKey: apiKey() } });
const identifier = join(PACKAGE, "program.js");
const main = new SourceTextModule(program, { context, identifier });
await main.link(link);
await main.evaluate();
console.log("all is well");
process.exit(0);
