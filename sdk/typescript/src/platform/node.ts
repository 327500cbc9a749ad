// What Node.js brings. Versions without a global WebSocket are the reason for `websocket.ts`; it is
// used on all of them, since it can send the key as a header and tells why an upgrade was refused.

import { createHash, createHmac, randomUUID as uuid } from "node:crypto";
import { readFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { LocalFile } from "./browser.js";

export { connect } from "./websocket.js";

export function randomUUID(): string {
  return uuid();
}

export async function hmacSha256(key: Uint8Array, data: Uint8Array): Promise<Uint8Array> {
  return new Uint8Array(createHmac("sha256", key).update(data).digest());
}

export function sha256Hex(text: string): string {
  return createHash("sha256").update(text, "utf8").digest("hex");
}

export function readLocalFile(path: string): Uint8Array {
  return readFileSync(path);
}

/** Every file below the folder, by path in byte order, so that equal folders give equal images. */
export function readLocalDir(path: string): LocalFile[] {
  const found: LocalFile[] = [];
  const walk = (below: string): void => {
    for (const name of readdirSync(join(path, below)).sort()) {
      const relativePath = below === "" ? name : `${below}/${name}`;
      const full = join(path, relativePath);
      const kind = statSync(full);
      if (kind.isDirectory()) walk(relativePath);
      else if (kind.isFile()) found.push({ relativePath, bytes: readFileSync(full) });
    }
  };
  walk("");
  return found;
}
