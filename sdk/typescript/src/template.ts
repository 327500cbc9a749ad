// Templates: images from Dockerfiles.

import { Client, path } from "./http.js";

export interface TemplateInfo {
  templateID: string;
  name: string;
  tag: string;
  /** `building`, `ready` or `failed`. */
  status: string;
}

const BUILD_MS_MAX = 300_000;

/** Templates of the organization, and the public ones. */
export class Templates {
  readonly #client: Client;

  /** Both from the environment when they are left out. */
  constructor(apiUrl?: string, apiKey?: string) {
    this.#client = new Client({ apiUrl, apiKey });
  }

  build(name: string, dockerfile: string): Promise<TemplateInfo> {
    return this.#client.json({
      action: "build template",
      method: "POST",
      path: "/templates",
      json: { name, dockerfile },
      timeoutMs: BUILD_MS_MAX,
    });
  }

  list(): Promise<TemplateInfo[]> {
    const action = "list templates";
    return this.#client.json({ action, method: "GET", path: "/templates", short: true });
  }

  get(name: string): Promise<TemplateInfo> {
    const at = path`/templates/${name}`;
    return this.#client.json({ action: "get template", method: "GET", path: at, short: true });
  }

  delete(name: string): Promise<void> {
    const at = path`/templates/${name}`;
    return this.#client.done({ action: "delete template", method: "DELETE", path: at, short: true });
  }
}
