// Secret stores: named sets of sealed secrets, attached to sandboxes at creation.

import { type ClientOpts } from "./config.js";
import { Client, path } from "./http.js";

export interface SecretStoreInfo {
  /** Store UUID. */
  id: string;
  /** Organization UUID. */
  orgId: string;
  name: string;
  /** Hosts that sandboxes may reach; empty: no restriction. */
  egressAllowlist: string[];
  /** ISO 8601. */
  createdAt: string;
  /** ISO 8601. */
  updatedAt: string;
}

export interface SecretEntryInfo {
  /** Entry UUID. */
  id: string;
  /** UUID of the store. */
  storeId: string;
  /** The variable's name in sandboxes. */
  name: string;
  /** Hosts that may receive the value; empty: every host that the sandbox may reach. */
  allowedHosts: string[];
  /** ISO 8601. */
  createdAt: string;
  /** ISO 8601. */
  updatedAt: string;
}

export type SecretStoreOpts = ClientOpts;

export interface UpdateSecretStoreOpts extends SecretStoreOpts {
  name?: string;
  egressAllowlist?: string[];
}

export interface CreateSecretStoreOpts extends UpdateSecretStoreOpts {
  /** Unique in the organization. */
  name: string;
}

export interface SetSecretOpts extends SecretStoreOpts {
  /** Hosts that may receive the value. Without it, every host that the sandbox may reach. */
  allowedHosts?: string[];
}

/** Named secrets for sandboxes. All methods are static. */
export class SecretStore {
  static create(opts: CreateSecretStoreOpts): Promise<SecretStoreInfo> {
    return new Client(opts).json({
      action: "create secret store",
      method: "POST",
      path: "/secret-stores",
      json: settings(opts),
      repeat: "keyed",
    });
  }

  static list(opts: SecretStoreOpts = {}): Promise<SecretStoreInfo[]> {
    const action = "list secret stores";
    return new Client(opts).json({ action, method: "GET", path: "/secret-stores", short: true });
  }

  static get(storeId: string, opts: SecretStoreOpts = {}): Promise<SecretStoreInfo> {
    const at = path`/secret-stores/${storeId}`;
    const action = "get secret store";
    return new Client(opts).json({ action, method: "GET", path: at, short: true });
  }

  /** Only what is given changes. `egressAllowlist: []` lifts the restriction. */
  static update(storeId: string, opts: UpdateSecretStoreOpts): Promise<SecretStoreInfo> {
    return new Client(opts).json({
      action: "update secret store",
      method: "PUT",
      path: path`/secret-stores/${storeId}`,
      json: settings(opts),
    });
  }

  /** Deletes the store and its secrets. Running sandboxes are not affected. */
  static delete(storeId: string, opts: SecretStoreOpts = {}): Promise<void> {
    const at = path`/secret-stores/${storeId}`;
    const action = "delete secret store";
    return new Client(opts).done({ action, method: "DELETE", path: at, short: true });
  }

  /** Sets or replaces a secret, with its hosts. No call gives the value back. */
  static setSecret(
    storeId: string,
    name: string,
    value: string,
    opts: SetSecretOpts = {},
  ): Promise<void> {
    return new Client(opts).done({
      action: "set secret",
      method: "PUT",
      path: path`/secret-stores/${storeId}/secrets/${name}`,
      json: { value, allowedHosts: opts.allowedHosts },
      secrets: [value],
    });
  }

  /** Metadata only. */
  static listSecrets(storeId: string, opts: SecretStoreOpts = {}): Promise<SecretEntryInfo[]> {
    const at = path`/secret-stores/${storeId}/secrets`;
    return new Client(opts).json({ action: "list secrets", method: "GET", path: at, short: true });
  }

  /** A secret that is not there counts as deleted. */
  static deleteSecret(storeId: string, name: string, opts: SecretStoreOpts = {}): Promise<void> {
    const at = path`/secret-stores/${storeId}/secrets/${name}`;
    const action = "delete secret";
    return new Client(opts).gone({ action, method: "DELETE", path: at, short: true });
  }
}

function settings(opts: UpdateSecretStoreOpts): Record<string, unknown> {
  return { name: opts.name || undefined, egressAllowlist: opts.egressAllowlist ?? undefined };
}
