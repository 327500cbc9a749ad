// Projects: shared defaults and sealed secrets for the sandboxes created with them.

import { type ClientOpts } from "./config.js";
import { Client, path } from "./http.js";

export interface ProjectInfo {
  /** Project UUID. */
  id: string;
  /** Organization UUID. */
  orgId: string;
  name: string;
  /** Default template. */
  template: string;
  /** Default vCPU count. */
  cpuCount: number;
  /** Default memory in MB. */
  memoryMB: number;
  /** Default idle timeout in seconds. */
  timeoutSec: number;
  /** Hosts that sandboxes may reach; empty: no restriction. */
  egressAllowlist: string[];
  /** ISO 8601. */
  createdAt: string;
  /** ISO 8601. */
  updatedAt: string;
}

export type ProjectOpts = ClientOpts;

export interface UpdateProjectOpts extends ProjectOpts {
  name?: string;
  template?: string;
  cpuCount?: number;
  memoryMB?: number;
  timeoutSec?: number;
  egressAllowlist?: string[];
}

export interface CreateProjectOpts extends UpdateProjectOpts {
  /** Unique in the organization. */
  name: string;
}

export interface SetProjectSecretOpts extends ProjectOpts {
  /** Hosts that may receive the value. Without it, every host that the sandbox may reach. */
  allowedHosts?: string[];
}

/** Groups sandboxes with shared defaults and secrets. All methods are static. */
export class Project {
  static create(opts: CreateProjectOpts): Promise<ProjectInfo> {
    return new Client(opts).json({
      action: "create project",
      method: "POST",
      path: "/projects",
      json: settings(opts),
      repeat: "keyed",
    });
  }

  static list(opts: ProjectOpts = {}): Promise<ProjectInfo[]> {
    const action = "list projects";
    return new Client(opts).json({ action, method: "GET", path: "/projects", short: true });
  }

  static get(projectId: string, opts: ProjectOpts = {}): Promise<ProjectInfo> {
    const at = path`/projects/${projectId}`;
    return new Client(opts).json({ action: "get project", method: "GET", path: at, short: true });
  }

  /** Only what is given changes. `egressAllowlist: []` lifts the restriction. */
  static update(projectId: string, opts: UpdateProjectOpts): Promise<ProjectInfo> {
    return new Client(opts).json({
      action: "update project",
      method: "PUT",
      path: path`/projects/${projectId}`,
      json: settings(opts),
    });
  }

  /** Deletes the project and its secrets. Running sandboxes are not affected. */
  static delete(projectId: string, opts: ProjectOpts = {}): Promise<void> {
    const at = path`/projects/${projectId}`;
    const action = "delete project";
    return new Client(opts).done({ action, method: "DELETE", path: at, short: true });
  }

  /** Sets or replaces a secret. No call gives the value back. */
  static setSecret(
    projectId: string,
    name: string,
    value: string,
    opts: SetProjectSecretOpts = {},
  ): Promise<void> {
    return new Client(opts).done({
      action: "set secret",
      method: "PUT",
      path: path`/projects/${projectId}/secrets/${name}`,
      json: { value, allowedHosts: opts.allowedHosts },
      secrets: [value],
    });
  }

  /** Names only. */
  static listSecrets(projectId: string, opts: ProjectOpts = {}): Promise<string[]> {
    const at = path`/projects/${projectId}/secrets`;
    return new Client(opts).json({ action: "list secrets", method: "GET", path: at, short: true });
  }

  /** A secret that is not there counts as deleted. */
  static deleteSecret(projectId: string, name: string, opts: ProjectOpts = {}): Promise<void> {
    const at = path`/projects/${projectId}/secrets/${name}`;
    const action = "delete secret";
    return new Client(opts).gone({ action, method: "DELETE", path: at, short: true });
  }
}

/** What goes out: empty names mean "not given"; lists go out even when empty. */
function settings(opts: UpdateProjectOpts): Record<string, unknown> {
  return {
    name: opts.name || undefined,
    template: opts.template || undefined,
    cpuCount: opts.cpuCount ?? undefined,
    memoryMB: opts.memoryMB ?? undefined,
    timeoutSec: opts.timeoutSec ?? undefined,
    egressAllowlist: opts.egressAllowlist ?? undefined,
  };
}
