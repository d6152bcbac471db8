// A codemill bundle through ONNX Runtime: embeddings, and labels with their probabilities. For browsers and Node alike.
//
//   const model = await openBundle({ ort, Tokenizer, read: path => bytes of that file of the bundle });
//   const [row] = await model.encode(["def f(path): ..."]);      // Float32Array of length 1
//   const [found] = await model.predict(["int f(char *s) {...}"]);    // {label, score, layersUsed}
//
// One text a run, as a page has them. What is longer than the bundle reads is cut off at its end.

const decoder = new TextDecoder();

export async function openBundle({ ort, Tokenizer, read, variant }) {
  const manifest = JSON.parse(decoder.decode(await read("manifest.json")));
  const name = variant ?? chooseVariant(manifest);
  const tokenizer = new Tokenizer(JSON.parse(decoder.decode(await read("tokenizer.json"))), {});
  const sessions = [];
  for (const path of manifest.variants[name].segments) {
    sessions.push(await ort.InferenceSession.create(await read(path), { executionProviders: ["wasm"] }));
  }
  return new Model(ort, manifest, name, tokenizer, sessions);
}

function chooseVariant(manifest) {
  const runs = Object.entries(manifest.variants).filter(([, item]) =>
    ["onnxruntime-web", "CPUExecutionProvider"].includes(item.provider));
  if (!runs.length) {
    throw new Error(`no variant of ${manifest.name} runs here: ${Object.keys(manifest.variants)}`);
  }
  const rank = ([, item]) => [item.provider !== "onnxruntime-web", item.precision !== "int8"].map(Number);
  runs.sort((a, b) => rank(a)[0] - rank(b)[0] || rank(a)[1] - rank(b)[1]);
  return runs[0][0];
}

class Model {
  constructor(ort, manifest, variant, tokenizer, sessions) {
    Object.assign(this, { ort, manifest, variant, tokenizer, sessions });
    this.labels = manifest.output.labels ?? null;
    this.maxTokens = manifest.input.max_tokens;
  }

  // Ids of a text, or of two that share a sequence, at most as many as the bundle reads.
  tokens(text, second = null) {
    const whole = this.tokenizer.encode(text, { text_pair: second }).ids;
    this.cut = whole.length > this.maxTokens;
    if (!this.cut) return whole;
    if (second !== null) throw new Error("two texts that are too long together: shorten them before");
    const plain = this.tokenizer.encode(text, { add_special_tokens: false }).ids;
    // special tokens stand before and behind; the text between them is cut
    const added = whole.length - plain.length;
    let before = 0;
    while (before < added && whole[before] !== plain[0]) before += 1;
    const behind = whole.slice(whole.length - (added - before));
    return [...whole.slice(0, before), ...plain.slice(0, this.maxTokens - added), ...behind];
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
      let truncated = false;
      const cut = (...given) => {
        const ids = this.tokens(...given);
        truncated ||= this.cut;
        return ids;
      };
      const rows = input.joined ? [cut(...texts)] : texts.map((text) => cut(text));
      let states = rows.map((ids) => this.inputs(ids));
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
    const padded = ids.length ? ids : [0];
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
