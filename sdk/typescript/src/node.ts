// The package under the name that earlier versions had for Node.js.

export * from "./index.js";
