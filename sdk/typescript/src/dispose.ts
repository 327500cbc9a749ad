/// <reference lib="esnext.disposable" preserve="true" />

// Runtimes without these symbols get them, before any class has methods of that name.

(Symbol as { asyncDispose?: symbol }).asyncDispose ??= Symbol.for("Symbol.asyncDispose");
(Symbol as { dispose?: symbol }).dispose ??= Symbol.for("Symbol.dispose");

export {};
