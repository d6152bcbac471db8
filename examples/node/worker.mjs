// Answers, for tests and measurements: a request on its standard input, a line of JSON each, is answered with a line.
//
//   node worker.mjs BUNDLE [VARIANT]
//   {"op": "encode", "texts": [...]}    {"op": "tokens", "texts": [...]}    {"op": "predict", "items": [...]}
import { createInterface } from "node:readline";
import { openFolder } from "./search.mjs";

const [folder, variant] = process.argv.slice(2);
const model = await openFolder(folder, { variant });
for await (const line of createInterface({ input: process.stdin })) {
  const { op, texts, items } = JSON.parse(line);
  const before = performance.now();
  const answer = {};
  if (op === "encode") answer.rows = (await model.encode(texts)).map((row) => Array.from(row));
  if (op === "tokens") answer.tokens = texts.map((text) => model.tokens(...[text].flat()));
  if (op === "predict") answer.found = await model.predict(items);
  answer.ms = performance.now() - before;
  console.log(JSON.stringify(answer));
}
