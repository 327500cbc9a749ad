// Programs of Node.js inside the sandbox: `programs.mjs NAME NONCE`, see programs.py.
import https from "node:https";
import http2 from "node:http2";

const { API, INTEROP_KEY: token } = process.env;
const [name, nonce] = process.argv.slice(2);
const headers = { "x-api-key": token, authorization: `Bearer ${token}` };
const url = `${API}/echo?nonce=${nonce}`;
const post = { method: "POST", headers, body: JSON.stringify({ key: token }) };

async function text(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts).toString();
}

const programs = {
  fetch: async () => (await fetch(url, post)).text(),

  undici: async () => {
    const { request } = await import("undici");
    return (await request(url, post)).body.text();
  },

  "undici-h2": async () => {
    const { Client } = await import("undici");
    const client = new Client(API, { allowH2: true });
    const { pathname, search } = new URL(url);
    const reply = await client.request({ ...post, path: pathname + search });
    const answer = await reply.body.text();
    await client.close();
    return answer;
  },

  https: () =>
    new Promise((done, failed) => {
      const call = https.request(url, { method: "POST", headers }, (reply) => done(text(reply)));
      call.on("error", failed).end(post.body);
    }),

  http2: async () => {
    const session = http2.connect(API);
    const first = { ":path": `/echo?nonce=${nonce}`, ":method": "POST" };
    const call = session.request({ ...first, ...headers });
    call.end(post.body);
    const answer = await text(call);
    session.close();
    return answer;
  },

  ws: async () => {
    const { WebSocket } = await import("ws");
    const where = `${API.replace("https", "wss")}/socket?nonce=${nonce}`;
    const socket = new WebSocket(where, { headers });
    const came = [];
    return new Promise((done, failed) => {
      socket.on("error", failed);
      socket.on("open", () => {
        socket.send(`text ${token}`);
        socket.send(`in two ${token.slice(0, 20)}`, { fin: false });
        socket.send(`${token.slice(20)} frames`, { fin: true });
        socket.send(Buffer.from(`binary ${token}`));
      });
      socket.on("message", (data) => {
        came.push(data.toString());
        if (came.length < 3) return;
        socket.close();
        done(came.join("\n"));
      });
    });
  },
};

console.log(await programs[name]());
