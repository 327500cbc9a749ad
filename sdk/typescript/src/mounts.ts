// Other file systems inside a sandbox.

import { path, type Client } from "./http.js";

export type MountBackend = "s3" | "gcs" | "azureblob" | "sftp" | "webdav" | "dropbox";

export interface RcloneMountOpts {
  /** Absolute path in the sandbox. */
  path: string;
  driver?: "rclone";
  /** `<name>:<path>`. */
  remote: string;
  backend?: MountBackend;
  /** The backend's settings; never given back. */
  creds?: Record<string, string>;
  /** In place of `backend` and `creds`. */
  rcloneConfig?: string;
  /** Default true. */
  readOnly?: boolean;
  /** Further arguments of `rclone mount`. */
  mountOptions?: string[];
}

export interface CommandMountOpts {
  /** Absolute path in the sandbox. */
  path: string;
  driver: "command";
  /** `{mountpoint}` stands for the path. */
  command: string[];
  env?: Record<string, string>;
  /** Variables of the command; never given back. */
  secrets?: Record<string, string>;
  /** Default true. */
  readOnly?: boolean;
}

export type AddMountOpts = RcloneMountOpts | CommandMountOpts;

export interface MountInfo {
  path: string;
  driver: "rclone" | "command";
  readOnly: boolean;
  remote?: string;
  backend?: string;
  rcloneVersion?: string;
  command?: string[];
  env?: Record<string, string>;
}

/** Mounts of one sandbox. */
export class Mounts {
  readonly #client: Client;
  readonly #path: string;

  /** @internal Sandboxes have one as `mounts`. */
  constructor(client: Client, sandboxId: string) {
    this.#client = client;
    this.#path = path`/sandboxes/${sandboxId}/mounts`;
  }

  add(opts: AddMountOpts): Promise<MountInfo> {
    const command = opts.driver === "command";
    const hidden = command ? [opts.secrets] : [opts.creds, { config: opts.rcloneConfig ?? "" }];
    const secrets = hidden.flatMap((some) => Object.values(some ?? {}));
    const action = "add mount";
    return this.#client.json({ action, method: "POST", path: this.#path, json: opts, secrets });
  }

  list(): Promise<MountInfo[]> {
    return this.#client.json({ action: "list mounts", method: "GET", path: this.#path });
  }

  /** One that is not there counts as removed. */
  remove(mountPath: string): Promise<void> {
    const query = { path: mountPath };
    return this.#client.gone({ action: "remove mount", method: "DELETE", path: this.#path, query });
  }
}
