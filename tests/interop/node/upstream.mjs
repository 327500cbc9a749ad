// The hosts that sandboxes call, on loopback: one port that speaks HTTP/1.1 and HTTP/2 by ALPN
// (echo, codings, SSE, gRPC, WebSocket, git, a pip index, an npm registry), an SSH server for git,
// and a protocol in which the server speaks first.
//
// Whatever arrives is kept under the `nonce` of its query and told by the observer, a plain HTTP
// port for the driver alone. Started with the folder of certificates, packages and repositories;
// prints its ports as one line of JSON; ends with its standard input.
import { spawn } from "node:child_process";
import { createHash, generateKeyPairSync } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import http2 from "node:http2";
import net from "node:net";
import { basename, join } from "node:path";
import zlib from "node:zlib";
import ssh2 from "ssh2";
import { WebSocketServer } from "ws";

const [folder] = process.argv.slice(2);
const ECHO_BYTES_MAX = 1024 * 1024;
const RECORDS_MAX = 1000;
const EVENT_GAP_MS = 30;
const records = new Map();

function record(nonce, seen) {
  records.set(nonce, [...(records.get(nonce) ?? []), seen]);
  if (records.size > RECORDS_MAX) records.delete(records.keys().next().value);
}

async function body(request) {
  const digest = createHash("sha256");
  let bytes = 0;
  const kept = [];
  for await (const chunk of request) {
    digest.update(chunk);
    bytes += chunk.length;
    if (bytes <= ECHO_BYTES_MAX) kept.push(chunk);
  }
  const text = bytes <= ECHO_BYTES_MAX ? Buffer.concat(kept).toString() : "";
  return { bytes, sha256: digest.digest("hex"), text };
}

function reply(response, status, type, data) {
  response.writeHead(status, { "content-type": type, "content-length": Buffer.byteLength(data) });
  response.end(data);
}

function json(response, data, status = 200) {
  reply(response, status, "application/json", JSON.stringify(data));
}

function file(response, path, type) {
  try {
    reply(response, 200, type, readFileSync(path));
  } catch {
    json(response, { error: "no such file" }, 404);
  }
}

async function echo(request, response, url) {
  const { method, httpVersion, headers } = request;
  const seen = { method, path: request.url, version: httpVersion, headers: { ...headers } };
  seen.body = await body(request);
  record(url.searchParams.get("nonce"), seen);
  json(response, { echo: seen });
}

async function coded(request, response, url) {
  const coding = url.searchParams.get("coding");
  const seen = { headers: { ...request.headers } };
  record(url.searchParams.get("nonce"), seen);
  const plain = Buffer.from(JSON.stringify({ echo: seen, filler: "filler ".repeat(500) }));
  const coders = { gzip: zlib.gzipSync, deflate: zlib.deflateSync, br: zlib.brotliCompressSync };
  const data = coding === "zstd" ? await zstd(plain) : coders[coding](plain);
  response.writeHead(200, { "content-encoding": coding, "content-length": data.length });
  response.end(data);
}

// Older Node.js has no zstd of its own.
async function zstd(plain) {
  const child = spawn("zstd", ["-c"], { stdio: ["pipe", "pipe", "ignore"] });
  child.stdin.end(plain);
  const parts = [];
  for await (const part of child.stdout) parts.push(part);
  return Buffer.concat(parts);
}

async function events(request, response, url) {
  const seen = { headers: { ...request.headers } };
  record(url.searchParams.get("nonce"), seen);
  response.writeHead(200, { "content-type": "text/event-stream" });
  for (let count = 0; count < 3; count += 1) {
    response.write(`id: ${count}\ndata: key ${request.headers["x-api-key"]}\n\n`);
    await new Promise((next) => setTimeout(next, EVENT_GAP_MS));
  }
  response.end("data: end\n\n");
}

// Every message comes back as it went, under whichever method it was called.
async function grpc(request, response) {
  const { headers } = request;
  const metadata = Object.fromEntries(Object.entries(headers).filter(([name]) => name[0] !== ":"));
  const seen = { headers: metadata, messages: "" };
  record(metadata["x-nonce"], seen);
  const key = metadata["x-api-key"];
  response.writeHead(200, { "content-type": "application/grpc", "x-seen": key });
  response.setTrailer("grpc-status", "0");
  response.setTrailer("x-seen-last", key);
  for await (const chunk of request) {
    seen.messages += chunk.toString("latin1");
    response.write(chunk);
  }
  response.end();
}

function basic(request, name) {
  const [scheme, word] = (request.headers.authorization ?? "").split(" ");
  const [user, password] =
    scheme === "Basic" ? Buffer.from(word, "base64").toString().split(":") : [];
  record(name, { user, password });
  return password === process.env.INTEROP_VALUE;
}

function unauthorized(response) {
  response.writeHead(401, { "www-authenticate": 'Basic realm="interop"', "content-length": 0 });
  response.end();
}

// git's own program for smart HTTP, as any web server runs it.
function git(request, response, url) {
  if (!basic(request, "git-https")) return unauthorized(response);
  const env = {
    PATH: process.env.PATH,
    GIT_PROJECT_ROOT: join(folder, "git"),
    GIT_HTTP_EXPORT_ALL: "1",
    PATH_INFO: url.pathname.slice("/git".length),
    QUERY_STRING: url.search.slice(1),
    REQUEST_METHOD: request.method,
    CONTENT_TYPE: request.headers["content-type"] ?? "",
    HTTP_CONTENT_ENCODING: request.headers["content-encoding"] ?? "",
    GIT_PROTOCOL: request.headers["git-protocol"] ?? "",
    REMOTE_USER: "interop",
  };
  const child = spawn("git", ["http-backend"], { env, stdio: ["pipe", "pipe", "ignore"] });
  child.stdin.on("error", () => {});
  request.pipe(child.stdin);
  const parts = [];
  child.stdout.on("data", (part) => parts.push(part));
  child.on("close", () => {
    const all = Buffer.concat(parts);
    const end = all.indexOf("\r\n\r\n");
    const lines = all.subarray(0, end).toString().split("\r\n");
    const fields = lines.map((line) => line.split(/: (.*)/));
    const { Status: status = "200", ...rest } = Object.fromEntries(fields);
    response.writeHead(Number.parseInt(status, 10), rest);
    response.end(all.subarray(end + 4));
  });
}

// The simple index of PEP 503 over a flat folder of wheels.
function simple(request, response, url) {
  if (!basic(request, "pip")) return unauthorized(response);
  const [, , kind, name] = url.pathname.split("/");
  if (kind === "files") {
    return file(response, join(folder, "wheels", basename(name)), "application/octet-stream");
  }
  const wheels = JSON.parse(readFileSync(join(folder, "wheels.json")));
  const links = wheels
    .filter((wheel) => wheel.split("-")[0].replaceAll(/[._]/g, "-").toLowerCase() === kind)
    .map((wheel) => `<a href="/simple/files/${wheel}">${wheel}</a>`);
  return reply(response, 200, "text/html", `<!DOCTYPE html><html><body>${links}</body></html>`);
}

function npm(request, response, url) {
  const sent = request.headers.authorization ?? "";
  record("npm", { authorization: sent });
  if (sent !== `Bearer ${process.env.INTEROP_VALUE}`) return json(response, { error: "who?" }, 401);
  const [, , name, archive] = url.pathname.split("/");
  const bytes = "application/octet-stream";
  if (archive) return file(response, join(folder, "npm", basename(archive)), bytes);
  const packages = JSON.parse(readFileSync(join(folder, "npm.json")));
  const found = packages[name];
  if (!found) return json(response, { error: "no such package" }, 404);
  const host = request.headers.host ?? request.headers[":authority"];
  const tarball = `https://${host}/npm/${name}/${found.archive}`;
  const dist = { tarball, integrity: found.integrity };
  const versions = { [found.version]: { name, version: found.version, dist } };
  return json(response, { name, "dist-tags": { latest: found.version }, versions });
}

// A registry of cargo, as far as listing owners needs it.
function cargo(request, response, url) {
  const origin = `https://${request.headers.host ?? request.headers[":authority"]}/cargo`;
  if (url.pathname === "/cargo/config.json") return json(response, { dl: origin, api: origin });
  const { authorization } = request.headers;
  record("cargo", { path: url.pathname, authorization });
  return json(response, { users: [{ id: 1, login: authorization, name: "interop" }] });
}

const routes = [
  ["/cargo/", cargo],
  ["/coded", coded],
  ["/events", events],
  ["/git/", git],
  ["/simple/", simple],
  ["/npm/", npm],
];

function answer(request, response) {
  const type = request.headers["content-type"] ?? "";
  if (type.startsWith("application/grpc")) return grpc(request, response);
  const url = new URL(request.url, "https://host");
  const [, handle] = routes.find(([path]) => url.pathname.startsWith(path)) ?? ["", echo];
  return handle(request, response, url);
}

const web = http2.createSecureServer(
  {
    key: readFileSync(join(folder, "leaf.key")),
    cert: readFileSync(join(folder, "leaf.pem")),
    allowHTTP1: true,
  },
  (request, response) =>
    Promise.resolve(answer(request, response)).catch((error) => {
      console.error(error.message);
      (response.stream ?? response).destroy();
    }),
);

const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: { threshold: 0 } });
web.on("upgrade", (request, socket, head) =>
  sockets.handleUpgrade(request, socket, head, (peer) => {
    const nonce = new URL(request.url, "https://host").searchParams.get("nonce");
    const seen = { headers: { ...request.headers }, extensions: peer.extensions, messages: [] };
    record(nonce, seen);
    peer.on("error", () => {});
    peer.on("message", (data, binary) => {
      seen.messages.push(data.toString());
      peer.send(data, { binary });
    });
  }),
);

const keys = generateKeyPairSync("rsa", { modulusLength: 2048 });
const hostKeys = [keys.privateKey.export({ type: "pkcs1", format: "pem" })];
const ssh = new ssh2.Server({ hostKeys }, (client) => {
  client.on("error", () => {});
  client.on("authentication", (context) => context.accept());
  client.on("session", (accept) =>
    accept().on("env", (yes) => yes?.()).on("exec", (yes, _no, { command }) => {
      record("ssh", { command });
      const path = join(folder, "git", basename(command.split("'")[1] ?? ""));
      const channel = yes();
      const child = spawn("git-upload-pack", [path], { stdio: ["pipe", "pipe", "ignore"] });
      channel.pipe(child.stdin).on("error", () => {});
      child.stdout.pipe(channel, { end: false });
      child.on("close", (code) => {
        channel.exit(code ?? 1);
        channel.end();
      });
    }),
  );
});

// As databases do: a greeting first, then line by line.
const greeter = net.createServer((socket) => {
  socket.on("error", () => {});
  socket.write("5.7 ready\n");
  socket.on("data", (line) => {
    record("greeter", { line: line.toString() });
    socket.write(`row ${line}`);
  });
});

const observer = http.createServer((request, response) => {
  const nonce = decodeURIComponent(request.url.slice("/seen/".length));
  json(response, records.get(nonce) ?? []);
});

const ports = {};
for (const [name, server] of Object.entries({ web, ssh, greeter, observer })) {
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  ports[name] = server.address().port;
}
console.log(JSON.stringify(ports));
process.stdin.on("end", () => process.exit(0)).resume();
