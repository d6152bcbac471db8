// Ask a codemill bundle of your own files, from Node.
//
//   node search.mjs BUNDLE "read a file as json" FILE...     the pieces of code that are nearest to the words
//   node search.mjs BUNDLE FILE...                           each file's label; where a bundle labels pairs, every two's
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { openBundle } from "../browser/mill.js";

// The bundle in a folder, its files checked against its manifest, run on the CPU.
export async function openFolder(folder, { variant, threads = 1 } = {}) {
  process.env.ORT_DISABLE_TELEMETRY ??= "1"; // before ONNX Runtime is loaded
  const [ort, { Tokenizer }] = await Promise.all([import("onnxruntime-node"), import("@huggingface/tokenizers")]);
  const read = async (path) => new Uint8Array(await readFile(join(folder, path)));
  const options = { intraOpNumThreads: threads, extra: { session: { force_spinning_stop: "1" } } };
  return openBundle({ ort, Tokenizer, read, variant, providers: ["CPUExecutionProvider"], options });
}

// Pieces of a file: one begins at a line without indentation behind an empty line.
function pieces({ path, text }) {
  let line = 1;
  return text.split(/(?<=\n[ \t\r]*\n)(?=\S)/).map((code) => {
    const where = `${path}:${line}`;
    line += code.split("\n").length - 1;
    return { where, code };
  });
}

async function search(model, words, files) {
  const all = files.flatMap(pieces).filter(({ code }) => code.trim());
  const [query, ...rows] = await model.encode([words, ...all.map(({ code }) => code)]);
  const scores = rows.map((row) => row.reduce((sum, value, i) => sum + value * query[i], 0));
  const nearest = all.map((_, i) => i).sort((a, b) => scores[b] - scores[a]);
  for (const i of nearest.slice(0, 5)) {
    console.log(`${all[i].where}  ${scores[i].toFixed(3)}  ${all[i].code.split("\n")[0]}`);
  }
}

async function label(model, files) {
  const sides = model.manifest.input.texts;
  if (files.length % sides) throw new Error(`${model.manifest.name} labels pairs of files; found ${files.length}`);
  for (let at = 0; at < files.length; at += sides) {
    const item = files.slice(at, at + sides);
    const [found] = await model.predict([item.map(({ text }) => text)]);
    const said = `${found.label}  ${found.score.toFixed(3)}  ${found.layersUsed} layers`;
    console.log(`${item.map(({ path }) => path).join(" ")}  ${said}${found.truncated ? "  (too long: cut off)" : ""}`);
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  try {
    const [folder, ...rest] = process.argv.slice(2);
    if (!rest.length) throw new Error('give a bundle and files: node search.mjs BUNDLE ["WORDS"] FILE...');
    const model = await openFolder(folder);
    const paths = model.labels ? rest : rest.slice(1);
    if (!paths.length) throw new Error(`${model.manifest.name} embeds: give words and files to search`);
    const files = await Promise.all(paths.map(async (path) => ({ path, text: await readFile(path, "utf8") })));
    await (model.labels ? label(model, files) : search(model, rest[0], files));
  } catch (error) {
    const missing = error.code === "ERR_MODULE_NOT_FOUND" ? "; run `npm install` in examples/node" : "";
    console.error(`error: ${error.message}${missing}`);
    process.exitCode = 1;
  }
}
