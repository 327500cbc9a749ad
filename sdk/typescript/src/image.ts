// Images as a list of steps.

import { readLocalDir, readLocalFile, sha256Hex } from "#platform";

export interface ImageStep {
  type: "apt_install" | "pip_install" | "run" | "env" | "workdir" | "add_file" | "add_dir";
  args: Record<string, unknown>;
}

export interface ImageManifest {
  base: string;
  steps: ImageStep[];
  /** Memory for the build, in MB; a hint. */
  builderMemoryMB?: number;
}

/** Describes an image; every method gives a new one and changes none. */
export class Image {
  readonly #manifest: ImageManifest;

  private constructor(manifest: ImageManifest) {
    this.#manifest = manifest;
  }

  /** The default environment, with Python, Node.js and build tools. */
  static base(): Image {
    return new Image({ base: "base", steps: [] });
  }

  /** System packages, as root. */
  aptInstall(packages: string[]): Image {
    return this.#with("apt_install", { packages: [...packages] });
  }

  /** Packages for the system's Python, as root. */
  pipInstall(packages: string[]): Image {
    return this.#with("pip_install", { packages: [...packages] });
  }

  /** Commands joined with `&&`, as the sandbox's user. */
  runCommands(...commands: string[]): Image {
    return this.#with("run", { commands });
  }

  /** Variables for later steps and everything that runs in the sandbox. */
  env(vars: Record<string, string>): Image {
    return this.#with("env", { vars: { ...vars } });
  }

  /** Folder of later steps and commands; it is made. */
  workdir(path: string): Image {
    return this.#with("workdir", { path });
  }

  /** A file with this text. */
  addFile(remotePath: string, content: string): Image {
    return this.#file(remotePath, new TextEncoder().encode(content));
  }

  /** A file of this machine, read now. Node.js only. */
  addLocalFile(localPath: string, remotePath: string): Image {
    return this.#file(remotePath, readLocalFile(localPath));
  }

  /** A folder of this machine with everything below, read now. Node.js only. */
  addLocalDir(localPath: string, remotePath: string): Image {
    const files = readLocalDir(localPath).map(({ relativePath, bytes }) => {
      return { relativePath, content: base64(bytes) };
    });
    return this.#with("add_dir", { path: remotePath, files });
  }

  /** Memory for the build, in MB. It makes no other image. */
  builderMemory(mb: number): Image {
    return new Image({ ...this.#manifest, builderMemoryMB: mb });
  }

  /** What is sent to the server. */
  toJSON(): ImageManifest {
    return structuredClone(this.#manifest);
  }

  /** SHA-256 of what the image consists of, in hex: equal for equal builders. Node.js only. */
  cacheKey(): string {
    const { base, steps } = this.#manifest;
    return sha256Hex(JSON.stringify({ base, steps }));
  }

  #file(path: string, bytes: Uint8Array): Image {
    return this.#with("add_file", { path, content: base64(bytes), encoding: "base64" });
  }

  #with(type: ImageStep["type"], args: Record<string, unknown>): Image {
    return new Image({ ...this.#manifest, steps: [...this.#manifest.steps, { type, args }] });
  }
}

const CHUNK = 0x8000;

function base64(bytes: Uint8Array): string {
  let binary = "";
  for (let start = 0; start < bytes.length; start += CHUNK) {
    binary += String.fromCharCode(...bytes.subarray(start, start + CHUNK));
  }
  return btoa(binary);
}
