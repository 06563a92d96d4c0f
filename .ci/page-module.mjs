// Keeps of a module what a page calls: `node page-module.mjs TOOLS IN OUT`. The drawing library brings exports of
// its own that nobody calls, and everything behind them.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { resolve } from "node:path";

const [tools, from, to] = process.argv.slice(2).map((path) => resolve(path));
const found = createRequire(`${tools}/`).resolve("binaryen");
const { default: binaryen } = await import(pathToFileURL(found).href);
const module = binaryen.readBinary(readFileSync(from));
// What browsers have had since 2021; more would let the writer use what they lack.
const { MVP, MutableGlobals, SignExt, BulkMemory, NontrappingFPToInt, Multivalue, ReferenceTypes } = binaryen.Features;
module.setFeatures(MVP | MutableGlobals | SignExt | BulkMemory | NontrappingFPToInt | Multivalue | ReferenceTypes);
const called = new Set(["memory", "room", "bring", "answer", "answer_at", "answer_len"]);
const names = Array.from({ length: module.getNumExports() }, (_, i) => binaryen.getExportInfo(module.getExportByIndex(i)).name);
for (const name of names) if (!called.has(name)) module.removeExport(name);
module.runPasses(["remove-unused-module-elements"]);

// Sections without a meaning for the one who runs it (id 0).
const bytes = module.emitBinary();
const kept = [bytes.subarray(0, 8)];
for (let at = 8; at < bytes.length; ) {
  const start = at;
  const id = bytes[at++];
  let [length, shift, byte] = [0, 0, 0];
  do {
    byte = bytes[at++];
    length += (byte & 127) * 2 ** shift;
    shift += 7;
  } while (byte & 128);
  at += length;
  if (id !== 0) kept.push(bytes.subarray(start, at));
}
writeFileSync(to, Buffer.concat(kept));
