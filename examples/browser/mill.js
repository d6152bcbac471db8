// A codemill bundle through ONNX Runtime: embeddings, and labels with their probabilities. For browsers and Node alike.
//
//   const model = await openBundle({ ort, Tokenizer, read: path => bytes of that file of the bundle });
//   const [row] = await model.encode(["def f(path): ..."]);      // Float32Array of length 1
//   const [found] = await model.predict(["int f(char *s) {...}"]);    // {label, score, layersUsed}
//
// One text a run, as a page has them. What is longer than the bundle reads is cut off at its end.

const SCHEMA = 1;
const PLAIN = "plain-fp32"; // the variant that others are made of
const PRECISIONS = ["int8", "int4", "fp32", "bf16", "fp16"]; // the best on a CPU first

// providers: those whose variants run here, the best first; options: of every session.
export async function openBundle({
  ort,
  Tokenizer,
  read,
  variant,
  providers = ["onnxruntime-web", "CPUExecutionProvider"],
  options = { executionProviders: ["wasm"] },
}) {
  const manifest = parsed("manifest.json", await read("manifest.json"));
  if (manifest?.schema !== SCHEMA) {
    throw new Error(`manifest.json is of schema ${manifest?.schema}; this reads schema ${SCHEMA}`);
  }
  if (!["embedding", "labels"].includes(manifest.output?.kind)) {
    throw new Error(`${manifest.name} is made for ${manifest.task}; this reads bundles that embed or label`);
  }
  const name = variant ?? chooseVariant(manifest, providers);
  if (!Object.hasOwn(manifest.variants, name)) {
    throw new Error(`${manifest.name} has no variant ${name}; it has: ${Object.keys(manifest.variants).join(", ")}`);
  }
  const file = (path) => checked(manifest.files[path], path, read);
  const saved = parsed("tokenizer.json", await file("tokenizer.json"));
  const tokenizer = new Tokenizer(saved, {});
  const sessions = [];
  for (const path of manifest.variants[name].segments) {
    sessions.push(await ort.InferenceSession.create(await file(path), options));
  }
  const padding = ["[PAD]", "<pad>"].map((token) => tokenizer.token_to_id(token));
  const padId = saved.padding?.pad_id ?? padding.find((id) => id !== undefined) ?? 0;
  return new Model(ort, manifest, name, tokenizer, padId, sessions);
}

function parsed(path, content) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content));
  } catch (error) {
    throw new Error(`${path} is not valid JSON: ${error.message}`);
  }
}

// The bytes of a file, which are what the manifest says of them: {sha256, size_bytes}.
async function checked(record, path, read) {
  if (!record || path.split("/").some((part) => ["", ".", ".."].includes(part)) || /[\\:]/.test(path)) {
    throw new Error(`${path} is not a file that the manifest may name`);
  }
  if (!globalThis.crypto?.subtle) {
    throw new Error("files cannot be checked here: serve the page by https, or on localhost");
  }
  const content = await read(path);
  if (content.length !== record.size_bytes) {
    throw new Error(`${path} has ${content.length} bytes, the manifest says ${record.size_bytes}. Get the bundle again`);
  }
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const sha256 = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (sha256 !== record.sha256) {
    throw new Error(`${path} was changed: its sha256 is ${sha256}, the manifest says ${record.sha256}. Get the bundle again`);
  }
  return content;
}

// Whether a variant is for this kind of machine; a page does not know its own, and neither it nor Node whether the
// processor has what 8-bit weights ask for.
function fits({ built_for: asked = {} }) {
  if (asked.int8_products) return false;
  const names = { linux: "linux", win32: "windows", darwin: "macos", x64: "x86_64", arm64: "arm64" };
  const { platform, arch } = globalThis.process ?? {};
  const has = (list, name) => !list?.length || list.includes(names[name]);
  return has(asked.systems, platform) && has(asked.architectures, arch);
}

function chooseVariant(manifest, providers) {
  const runs = Object.entries(manifest.variants).filter(([, item]) => providers.includes(item.provider) && fits(item));
  if (!runs.length) {
    const wants = Object.entries(manifest.variants).map(([name, item]) => `${name} (${item.provider})`);
    throw new Error(`no variant of ${manifest.name} runs here. It has: ${wants.join(", ")}; here: ${providers.join(", ")}`);
  }
  const place = (list, item) => (list.includes(item) ? list.indexOf(item) : list.length);
  const rank = ([name, item]) =>
    100 * (name === PLAIN) + 10 * place(providers, item.provider) + place(PRECISIONS, item.precision);
  return runs.sort((a, b) => rank(a) - rank(b))[0][0];
}

class Model {
  constructor(ort, manifest, variant, tokenizer, padId, sessions) {
    Object.assign(this, { ort, manifest, variant, tokenizer, padId, sessions });
    this.labels = manifest.output.labels ?? null;
    this.maxTokens = manifest.input.max_tokens;
  }

  // Ids of a text, or of two that share a sequence, at most as many as the bundle reads.
  tokens(text, second = null) {
    return this.cut(text, second).ids;
  }

  // The same, and whether something was cut off: {ids, truncated}. Of two texts the longer is cut first.
  cut(text, second = null) {
    const encode = (...given) => this.tokenizer.encode(...given).ids;
    // the tokenizer takes an empty second text for none: another stands there, of which nothing is kept
    const texts = second === null ? [text] : [text, second || "a"];
    const whole = encode(text, { text_pair: texts[1] });
    if (second === null && whole.length <= this.maxTokens) return { ids: whole, truncated: false };
    const plain = texts.map((each) => encode(each, { add_special_tokens: false }));
    const special = whole.length - plain.reduce((sum, each) => sum + each.length, 0);
    // each of two texts is first cut as if it were alone
    const most = second === null ? Infinity : this.maxTokens - encode("").length;
    const wanted = plain.map((each, i) => (i && !second ? 0 : each.length));
    const kept = shares(wanted.map((count) => Math.min(count, most)), this.maxTokens - special);
    // special tokens stand before, between and behind
    const ids = [];
    let at = 0;
    plain.forEach((each, i) => {
      const start = placeOf(each, whole, at);
      ids.push(...whole.slice(at, start), ...each.slice(0, kept[i]));
      at = start + each.length;
    });
    ids.push(...whole.slice(at));
    return { ids, truncated: wanted.some((count, i) => count > kept[i]) };
  }

  // Embeddings of texts: Float32Array each; of a bundle that labels, those of its last part, of length 1.
  async encode(texts) {
    const rows = [];
    for (const text of texts) {
      let embedding = null;
      for (let part = 0; part < this.parts; part += 1) {
        embedding = await this.part(part, part ? this.handed : this.inputs(this.tokens(text)));
      }
      rows.push(this.labels ? unit(embedding.data) : new Float32Array(embedding.data));
    }
    return rows;
  }

  // What is said of each item, a text or two: it leaves at the first exit that is certain enough.
  async predict(items) {
    const { exits, architecture, input, output } = this.manifest;
    const found = [];
    for (const item of items) {
      const texts = Array.isArray(item) ? item : [item];
      const rows = input.joined ? [this.cut(...texts)] : texts.map((text) => this.cut(text));
      const truncated = rows.some((row) => row.truncated);
      let states = rows.map((row) => this.inputs(row.ids));
      for (let part = 0; ; part += 1) {
        const last = part === exits.length;
        const sides = [];
        const next = [];
        for (const state of states) {
          sides.push(await this.part(part, state));
          next.push(this.handed);
        }
        const feeds = Object.fromEntries(sides.map((side, i) => [["first", "second"][i], side]));
        const { logits } = await this.sessions[2 * part + 1].run(feeds);
        const chances = softmax(logits.data, last ? output.temperature ?? 1 : exits[part].temperature);
        const best = chances.indexOf(Math.max(...chances));
        if (last || chances[best] >= exits[part].threshold) {
          const layersUsed = last ? architecture.layers : exits[part].layer;
          const score = chances[best];
          found.push({ label: output.labels[best], score, probabilities: chances, layersUsed, truncated });
          break;
        }
        states = next;
      }
    }
    return found;
  }

  get parts() {
    return this.labels ? this.manifest.exits.length + 1 : 1;
  }

  inputs(ids) {
    const shape = [1, Math.max(1, ids.length)];
    // a text without a single token still needs something to pool over
    const padded = ids.length ? ids : [this.padId];
    return {
      input_ids: new this.ort.Tensor("int64", BigInt64Array.from(padded.map(BigInt)), shape),
      attention_mask: new this.ort.Tensor("int64", new BigInt64Array(shape[1]).fill(1n), shape),
    };
  }

  // A part of the encoder: its embedding; what the next part takes is kept in `handed`.
  async part(number, feeds) {
    const given = await this.sessions[this.labels ? 2 * number : 0].run(feeds);
    const hidden = given.hidden ?? given.next_hidden;
    this.handed = hidden ? { hidden, attention_mask: feeds.attention_mask } : null;
    return given.embedding;
  }
}

// How many ids of a text, or of two, are kept where there is room for so many.
function shares([first, second], room) {
  if (second === undefined) return [Math.min(first, room)];
  const shorter = Math.min(first, second, room >> 1);
  const longer = Math.min(Math.max(first, second), room - shorter);
  return first > second ? [longer, shorter] : [shorter, longer];
}

// Where `part` begins in `whole`, from `start` on.
function placeOf(part, whole, start) {
  let at = start;
  while (part.some((id, i) => whole[at + i] !== id)) {
    at += 1;
    if (at + part.length > whole.length) throw new Error("the tokenizer joins texts otherwise than it reads them alone");
  }
  return at;
}

function softmax(logits, temperature) {
  const scaled = Array.from(logits, (value) => value / temperature);
  const most = Math.max(...scaled);
  const powers = scaled.map((value) => Math.exp(value - most));
  const total = powers.reduce((sum, value) => sum + value, 0);
  return powers.map((value) => value / total);
}

function unit(row) {
  const length = Math.hypot(...row) || 1;
  return Float32Array.from(row, (value) => value / length);
}
