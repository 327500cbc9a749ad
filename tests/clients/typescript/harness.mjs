// Runs checks, writes what they found (see lib/report.py), and holds the suite to its word: every
// public method of the package is checked here, named as not yet served, or another service's.

import assert from "node:assert/strict";
import { appendFileSync } from "node:fs";

const CHECK_MS_MAX = 60_000;
const checked = new Set();

function report(line) {
  appendFileSync(process.env.OC_RESULTS, `${JSON.stringify(line)}\n`);
}

/** One check of one method: it passes when `body` ends without throwing. */
export async function check(method, what, body) {
  checked.add(method);
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`took over ${CHECK_MS_MAX} ms`)), CHECK_MS_MAX);
  });
  try {
    const value = await Promise.race([body(), late]);
    report({ method, check: what, result: "passed" });
    return value;
  } catch (error) {
    report({ method, check: what, result: "failed", detail: String(error?.stack ?? error) });
    return undefined;
  } finally {
    clearTimeout(timer);
  }
}

/** Methods that no check calls, with the reason. */
export function name(result, methods) {
  for (const method of methods) report({ method, check: "", result });
}

/** Fails when the package has a public method that the suite neither checks nor names. */
export async function everyMethodIsAccountedFor(classes, exported, named) {
  await check("suite", "every public method is checked or named", async () => {
    const missing = exported.filter((one) => !(one in classes) && !named.includes(one));
    for (const [prefix, { type, internal = [] }] of Object.entries(classes)) {
      const statics = Object.getOwnPropertyNames(type).filter(
        (one) => typeof type[one] === "function",
      );
      const methods = Object.getOwnPropertyNames(type.prototype).filter(
        (one) => one !== "constructor" && !internal.includes(one),
      );
      for (const method of [...statics, ...methods]) {
        const full = `${prefix}.${method}`;
        if (!checked.has(full) && !named.includes(full)) missing.push(full);
      }
    }
    assert.deepEqual(missing, []);
  });
}

export function done() {
  report({ done: true });
}

/** A plain call of the API, for what this package has no method for. */
export async function plain(method, path, body) {
  const reply = await fetch(`${process.env.OPENCOMPUTER_API_URL}/api${path}`, {
    method,
    headers: { "X-API-Key": process.env.OPENCOMPUTER_API_KEY, "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await reply.text();
  return { status: reply.status, body: text === "" ? null : JSON.parse(text) };
}

/** Polls until `probe` gives something, at most `ms`. */
export async function eventually(what, ms, probe) {
  const until = Date.now() + ms;
  while (Date.now() < until) {
    const value = await probe();
    if (value) return value;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`did not happen within ${ms} ms: ${what}`);
}

/** Collects what callbacks get, as text. */
export function collector() {
  const decoder = new TextDecoder();
  const got = { stdout: "", stderr: "", exit: undefined, replayed: false };
  const callbacks = {
    onStdout: (bytes) => (got.stdout += decoder.decode(bytes)),
    onStderr: (bytes) => (got.stderr += decoder.decode(bytes)),
    onExit: (code) => (got.exit = code),
    onScrollbackEnd: () => (got.replayed = true),
  };
  return { got, callbacks };
}
