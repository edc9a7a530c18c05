// DALL-E's forward pass in plain JavaScript: the same names in the same order as the notebooks.
//
// D width, H heads, K head width, V vocabulary, L text states, N image cells, T = L + N states.
// A tensor of the weights is {shape, data}, an activation a Float32Array, an image (height, width,
// channels) with the colours of a pixel side by side. All sizes are read beside the weights.
// Source: minidalle/*.py, and Ramesh et al. 2021, arXiv:2102.12092.
"use strict";

// ---- 01 · Byte-pair encoding --------------------------------------------------------------------

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\xa0" };

/** Return `text` in lowercase with single spaces, and with the repairs of ftfy that typing can need:
 *  entities, ligatures, wide letters, curly quotes, control characters. Not repaired here: text that
 *  was once decoded with a wrong alphabet ("cafÃ©"). */
function normalise(text) {
  if (!text.includes("<")) {
    text = text.replace(/&(#\d{1,6}|[a-z]{2,4});/g, (all, name) =>
      name[0] === "#" ? String.fromCodePoint(Math.min(0x10FFFF, +name.slice(1))) : ENTITIES[name] ?? all);
  }
  text = text.replace(/ﬅ/g, "ſt") // then the other ligatures, and wide letters
    .replace(/[ĲĳŉǱ-ǳǄ-ǌﬀ-ﬆ\uff01-\uffef\u3000]/g, (c) => c.normalize("NFKC"))
    .replace(/[\u02bc\u2018-\u201b]/g, "'").replace(/[\u201c-\u201f]/g, '"')
    .replace(/\x1b\[[\d;]*[a-zA-Z]/g, "") // colours of a terminal
    .replace(/[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g, "")
    .replace(/\p{Surrogate}/gu, "\ufffd").normalize("NFC"); // UTF-8 holds no half of a pair
  return text.split(/[\s\x85]+/).filter((word) => word).join(" ").toLowerCase();
}

/** 256 characters: entry b is how the tokenizer's file shows byte b (a space is 'Ġ'). */
function byteAlphabet() {
  let hidden = 256;
  return Array.from({ length: 256 }, (_, b) => {
    const printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    return String.fromCharCode(printable ? b : hidden++);
  });
}

class BPETokenizer {
  /** file: the parsed tokenizer.json that training wrote. */
  constructor(file) {
    const { vocab, merges } = file.model;
    this.alphabet = byteAlphabet();
    this.ids = new Map(Object.entries(vocab)); // shown token -> id
    this.vocab = [];
    for (const [token, id] of this.ids) this.vocab[id] = token;
    this.ranks = new Map(merges.map((pair, rank) => [[].concat(pair).join(" "), rank]));
  }

  /** The ids of normalise(text), however many. */
  encode(text) {
    return this.explain(text).flatMap(({ tokens }) => tokens.map((token) => this.ids.get(token)));
  }

  /** Return each part of the text, a word of a-z or one other character, as {tokens, steps}: its
   *  tokens as the file shows them, and its pieces before the first merge and after each one. */
  explain(text) {
    const bytes = new TextEncoder();
    return (normalise(text).match(/[a-z]+|[^a-z]/gu) ?? []).map((part) => {
      let pieces = [...bytes.encode(part)].map((b) => this.alphabet[b]);
      const steps = [pieces];
      while ((pieces = this.merge(pieces))) steps.push(pieces);
      return { tokens: steps[steps.length - 1], steps };
    });
  }

  /** Merge the best pair of neighbours, the leftmost of equals; null where no pair has a rank. */
  merge(pieces) {
    let best = Infinity, at = -1;
    for (let i = 0; i + 1 < pieces.length; i++) {
      const rank = this.ranks.get(pieces[i] + " " + pieces[i + 1]) ?? Infinity;
      if (rank < best) [best, at] = [rank, i];
    }
    return at < 0 ? null : [...pieces.slice(0, at), pieces[at] + pieces[at + 1], ...pieces.slice(at + 2)];
  }

  /** The text of ids; bytes that are not UTF-8 show as U+FFFD. */
  decode(ids) {
    const shown = ids.map((id) => this.vocab[id]).join("");
    return new TextDecoder().decode(Uint8Array.from(shown, (c) => this.alphabet.indexOf(c)));
  }
}

// ---- What all networks are made of --------------------------------------------------------------

/** W x + b for `rows` vectors x: weight (out, in), bias (out) or none -> (rows, out). Four outputs at
 *  a time, so that each number of x is fetched once for four products. */
function linear(x, weight, bias, rows = 1) {
  const w = weight.data, out = weight.shape[0], n = w.length / out, y = new Float32Array(rows * out);
  for (let r = 0; r < rows; r++) {
    const start = r * n;
    let o = 0;
    for (; o + 3 < out; o += 4) {
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0, w0 = o * n, w1 = w0 + n, w2 = w1 + n, w3 = w2 + n; i < n; i++) {
        const value = x[start + i];
        a += w[w0 + i] * value; b += w[w1 + i] * value; c += w[w2 + i] * value; d += w[w3 + i] * value;
      }
      const to = r * out + o;
      y[to] = a; y[to + 1] = b; y[to + 2] = c; y[to + 3] = d;
    }
    for (; o < out; o++) {
      let a = 0;
      for (let i = 0, w0 = o * n; i < n; i++) a += w[w0 + i] * x[start + i];
      y[r * out + o] = a;
    }
    if (bias) for (o = 0; o < out; o++) y[r * out + o] += bias.data[o];
  }
  return y;
}

/** A convolution is a linear layer on the patch around each pixel: image (side, side, n) -> (side /
 *  stride, side / stride, out); weight (out, n, k, k); what lies outside the image is 0. */
function conv2d(image, side, weight, bias, stride = 1, padding = weight.shape[3] >> 1) {
  const [out, n, k] = weight.shape, to = Math.floor((side + 2 * padding - k) / stride) + 1;
  if (k === 1 && stride === 1) return linear(image, weight, bias, side * side);
  const patches = new Float32Array(to * to * n * k * k);
  for (let y = 0, p = 0; y < to; y++) for (let x = 0; x < to; x++, p += n * k * k) {
    for (let i = 0; i < k; i++) for (let j = 0; j < k; j++) {
      const row = y * stride + i - padding, column = x * stride + j - padding;
      if (row < 0 || column < 0 || row >= side || column >= side) continue;
      const from = (row * side + column) * n;
      for (let c = 0; c < n; c++) patches[p + (c * k + i) * k + j] = image[from + c];
    }
  }
  return linear(patches, weight, bias, to * to);
}

/** (x - mean) / standard deviation * gain + bias, for each row of D numbers. */
function layerNorm(x, weight, bias) {
  const D = weight.data.length, y = new Float32Array(x.length);
  for (let r = 0; r < x.length; r += D) {
    let mean = 0, square = 0;
    for (let i = r; i < r + D; i++) mean += x[i] / D;
    for (let i = r; i < r + D; i++) square += (x[i] - mean) ** 2 / D;
    const scale = 1 / Math.sqrt(square + 1e-5);
    for (let i = 0; i < D; i++) y[r + i] = (x[r + i] - mean) * scale * weight.data[i] + bias.data[i];
  }
  return y;
}

/** Turn scores into probabilities, in place. */
function softmax(x) {
  let most = -Infinity, total = 0;
  for (const value of x) if (value > most) most = value;
  for (let i = 0; i < x.length; i++) total += x[i] = Math.exp(x[i] - most);
  for (let i = 0; i < x.length; i++) x[i] /= total;
  return x;
}

const sum = (x) => x.reduce((a, b) => a + b, 0);
const relu = (x) => x.map((value) => (value > 0 ? value : 0));
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const add = (x, y) => x.map((value, i) => value + y[i]);
const quickGelu = (x) => x.map((value) => value * sigmoid(1.702 * value));
const gelu = (x) => x.map((value) => value * 0.5 * (1 + erf(value * Math.SQRT1_2)));

/** The error function, right to 1.5e-7. Source: Abramowitz and Stegun 1964, 7.1.26. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x)), high = (1.061405429 * t - 1.453152027) * t + 1.421413741;
  return Math.sign(x) * (1 - ((high * t - 0.284496736) * t + 0.254829592) * t * Math.exp(-x * x));
}

/** What H heads of one query q (D) see of the keys at positions `seen`: (D). keys, values (T, D).
 *  Where `looks` is given, how much each head looks at each position is written there, (H, T). */
function attend(q, keys, values, seen, H, looks = null) {
  const D = q.length, K = D / H, out = new Float32Array(D), scores = new Float64Array(seen.length);
  for (let h = 0; h < H; h++) {
    for (let j = 0; j < seen.length; j++) {
      let score = 0;
      for (let i = h * K, k = seen[j] * D + i; i < (h + 1) * K; i++, k++) score += q[i] * keys[k];
      scores[j] = score / Math.sqrt(K);
    }
    softmax(scores);
    for (let j = 0; j < seen.length; j++) {
      for (let i = h * K, k = seen[j] * D + i; i < (h + 1) * K; i++, k++) out[i] += scores[j] * values[k];
      if (looks) looks[h * (looks.length / H) + seen[j]] = scores[j];
    }
  }
  return out;
}

/** What the models share: their configuration, their weights, and layers called by name. */
class Model {
  constructor({ config, tensors }) {
    this.config = config;
    this.w = tensors;
  }

  linear(name, x, rows = 1) {
    return linear(x, this.w[`${name}.weight`], this.w[`${name}.bias`], rows);
  }

  norm(name, x) {
    return layerNorm(x, this.w[`${name}.weight`], this.w[`${name}.bias`]);
  }
}

// ---- 02 · The discrete VAE ----------------------------------------------------------------------

class DiscreteVAE extends Model {
  /** A convolution of the decoder. */
  conv(name, x, side) {
    return conv2d(x, side, this.w[`decoder.blocks.${name}.w`], this.w[`decoder.blocks.${name}.b`]);
  }

  /** tokens (grid * grid) -> image (S, S, 3) in [0, 1]. A token below 0 is a cell not drawn yet: it
   *  stands for the code vector 0. */
  decode(tokens) {
    const c = this.config, groups = c.n_pools + 1;
    const gain = c.gain ?? 1 / (groups * c.n_blocks) ** 2;
    let x = this.codeVectors(tokens), side = c.image_size / 2 ** c.n_pools;
    for (let g = 1; g <= groups; g++) {
      for (let b = 1; b <= c.n_blocks; b++) x = this.block(`group_${g}.block_${b}`, x, side, gain);
      if (g < groups) [x, side] = [upsample(x, side), 2 * side];
    }
    const output = this.conv("output.conv", relu(x), side); // (S, S, 6): mu and ln b of three colours
    const image = new Float32Array(side * side * 3);
    for (let i = 0; i < image.length; i++) {
      const mu = output[Math.floor(i / 3) * 6 + i % 3];
      image[i] = Math.min(1, Math.max(0, (sigmoid(mu) - 0.1) / 0.8)); // unmap_pixels
    }
    return image;
  }

  /** The codebook is the decoder's input convolution: look columns up, (grid, grid, n_init). */
  codeVectors(tokens) {
    const { "decoder.blocks.input.w": w, "decoder.blocks.input.b": b } = this.w;
    const [n, codes] = w.shape, x = new Float32Array(tokens.length * n);
    for (let t = 0; t < tokens.length; t++) for (let i = 0; i < n; i++) {
      x[t * n + i] = b.data[i] + (tokens[t] < 0 ? 0 : w.data[i * codes + tokens[t]]);
    }
    return x;
  }

  /** Bottleneck residual block: x + gain * four convolutions, ReLU before each. */
  block(name, x, side, gain) {
    let path = x;
    for (let i = 1; i <= 4; i++) path = this.conv(`${name}.res_path.conv_${i}`, relu(path), side);
    if (this.w[`decoder.blocks.${name}.id_path.w`]) x = this.conv(`${name}.id_path`, x, side);
    return x.map((value, i) => value + gain * path[i]);
  }
}

/** Double the side: every pixel becomes four equal ones. */
function upsample(image, side) {
  const n = image.length / side ** 2, out = new Float32Array(4 * image.length);
  for (let y = 0, to = 0; y < 2 * side; y++) for (let x = 0; x < 2 * side; x++, to += n) {
    const from = ((y >> 1) * side + (x >> 1)) * n;
    for (let c = 0; c < n; c++) out[to + c] = image[from + c];
  }
  return out;
}

// ---- 03 · Sparse attention ----------------------------------------------------------------------

/** The mask of each layer: row, column, row, row, ...; the last one is conv. */
function layerKinds(n) {
  return Array.from({ length: n }, (_, i) => (i === n - 1 ? "conv" : i % 4 === 1 ? "column" : "row"));
}

/** May the state at position q see the one at k, in a layer of this kind? */
function maySee(q, k, kind, L, grid, kernel) {
  const d = q - k, half = kernel >> 1; // how far back k lies
  if (d < 0) return false;
  if (k < L) return true; // all text before it
  if (kind === "row") return d <= grid;
  if (kind === "column") return d % grid === 0;
  return Math.floor(d / grid) <= half && (d % grid <= half || d % grid >= grid - half);
}

// ---- 04 · The prior, one state after another, with its cache ------------------------------------

class DALLE extends Model {
  constructor(weights) {
    super(weights);
    const { config } = this;
    this.kinds = layerKinds(config.n_layers);
    this.width = config.n_heads * config.head_dim;
    this.cells = config.grid ** 2;
    this.states = config.text_len + this.cells;
    this.seen = Object.fromEntries(["row", "column", "conv"].map((kind) => [kind, this.visible(kind)]));
  }

  /** For each position the positions that it may see. */
  visible(kind) {
    const { text_len, grid, kernel } = this.config, all = Array.from({ length: this.states }, (_, i) => i);
    return all.map((q) => all.filter((k) => maySee(q, k, kind, text_len, grid, kernel)));
  }

  row(name, i) {
    return this.w[name].data.subarray(i * this.width, (i + 1) * this.width);
  }

  /** The first state at a text position: start, token plus position, or the position's own pad. */
  embedText(ids, i) {
    if (i > ids.length) return this.row("pads.weight", i);
    const word = i ? this.row("text_embedding.weight", ids[i - 1]) : this.row("text_start", 0);
    return add(word, this.row("positions.weight", i));
  }

  /** The first state at an image cell: the token before it, plus the cell's own row and column. */
  embedImage(tokens, cell) {
    const { grid } = this.config, row = this.row("rows.weight", Math.floor(cell / grid));
    const token = cell ? this.row("image_embedding.weight", tokens[cell - 1]) : this.row("image_start", 0);
    return add(token, add(row, this.row("columns.weight", cell % grid)));
  }
}

/** A DALLE that reads one caption, then image tokens, and keeps keys, values and what heads look at. */
class Decoder {
  constructor(dalle, ids) {
    this.dalle = dalle;
    this.read = []; // image tokens that the cache holds
    this.ready = 0; // cells whose state is in the cache
    const { states: T, width: D, config: { n_heads, text_len } } = dalle;
    this.layers = dalle.kinds.map((kind) => ({ kind, keys: new Float32Array(T * D),
      values: new Float32Array(T * D), looks: new Float32Array(T * n_heads * T) }));
    this.last = new Float32Array(T * D); // states after the last layer
    for (let i = 0; i < text_len; i++) this.step(dalle.embedText(ids, i), i);
  }

  /** Take one state x (D) through all layers, and remember what later states will need of it. */
  step(x, position) {
    const { dalle } = this, { width: D, config: { n_heads: H } } = dalle, size = H * dalle.states;
    this.layers.forEach(({ kind, keys, values, looks }, layer) => {
      const name = `transformer.blocks.${layer}`;
      const qkv = dalle.linear(`${name}.attention.qkv`, dalle.norm(`${name}.attention.norm`, x)); // (3 D)
      keys.set(qkv.subarray(D, 2 * D), position * D);
      values.set(qkv.subarray(2 * D), position * D);
      const heads = attend(qkv.subarray(0, D), keys, values, dalle.seen[kind][position], H,
        looks.subarray(position * size, (position + 1) * size));
      x = add(x, dalle.linear(`${name}.attention.out`, heads));
      const up = dalle.linear(`${name}.mlp.up`, dalle.norm(`${name}.mlp.norm`, x)); // (4 D)
      x = add(x, dalle.linear(`${name}.mlp.down`, gelu(up)));
    });
    this.last.set(dalle.norm("transformer.norm", x), position * D);
  }

  /** Logits (V) of the cell that follows `tokens`, which may differ from those read before: what
   *  the cache still holds of them is kept, the rest is read again. */
  predict(tokens) {
    const cell = tokens.length;
    let same = 0;
    while (same < Math.min(cell, this.read.length) && tokens[same] === this.read[same]) same++;
    if (same < cell) { // the state of a cell holds the tokens before it
      this.ready = Math.min(this.ready, same + 1);
      this.read = tokens.slice();
    }
    for (; this.ready <= cell; this.ready++) {
      this.step(this.dalle.embedImage(tokens, this.ready), this.dalle.config.text_len + this.ready);
    }
    return this.dalle.linear("image_head", this.state(this.dalle.config.text_len + cell));
  }

  /** Logits of the text token that follows position i of the text. */
  predictText(i) {
    return this.dalle.linear("text_head", this.state(i));
  }

  state(i) {
    return this.last.subarray(i * this.dalle.width, (i + 1) * this.dalle.width);
  }
}

// ---- 05 · CLIP: which image fits the caption? ---------------------------------------------------

class CLIP extends Model {
  /** A stack of residual attention blocks over T states x (T, D); a causal one sees no later state. */
  tower(name, x, D, layers, n_heads, causal) {
    const T = x.length / D, order = Array.from({ length: T }, (_, i) => i);
    for (let layer = 0; layer < layers; layer++) {
      const at = `${name}.resblocks.${layer}`, attn = `${at}.attn.in_proj_`;
      const qkv = linear(this.norm(`${at}.ln_1`, x), this.w[`${attn}weight`], this.w[`${attn}bias`], T);
      const part = (i) => order.map((t) => qkv.subarray((3 * t + i) * D, (3 * t + i + 1) * D));
      const keys = concatenate(part(1)), values = concatenate(part(2));
      const seen = (t) => (causal ? order.slice(0, t + 1) : order);
      const heads = part(0).map((q, t) => attend(q, keys, values, seen(t), n_heads));
      x = add(x, this.linear(`${at}.attn.out_proj`, concatenate(heads), T));
      const up = this.linear(`${at}.mlp.c_fc`, this.norm(`${at}.ln_2`, x), T);
      x = add(x, this.linear(`${at}.mlp.c_proj`, quickGelu(up), T));
    }
    return x;
  }

  /** Place a caption's ids on the unit sphere: start, tokens, end through the text tower, (E). */
  encodeText(ids) {
    const { vocab_size, text_width: D, text_layers, text_heads, context_length } = this.config;
    const framed = [vocab_size - 2, ...ids, vocab_size - 1];
    if (framed.length > context_length) throw new Error(`${ids.length} tokens do not fit CLIP's context`);
    const x = concatenate(framed.map((id, i) => {
      const word = this.w["token_embedding.weight"].data.subarray(id * D, (id + 1) * D);
      return add(word, this.w["positional_embedding"].data.subarray(i * D, (i + 1) * D));
    }));
    const end = this.tower("transformer", x, D, text_layers, text_heads, true).subarray(-D);
    return project(this.norm("ln_final", end), this.w["text_projection"]);
  }

  /** Place an image (S, S, 3) on the unit sphere: a class token and its patches, (E). */
  encodeImage(image) {
    const { vision_width: D, vision_layers, vision_heads, patch_size, image_size } = this.config;
    const mean = [0.48145466, 0.4578275, 0.40821073], std = [0.26862954, 0.26130258, 0.27577711];
    const input = image.map((value, i) => (value - mean[i % 3]) / std[i % 3]);
    const patches = conv2d(input, image_size, this.w["visual.conv1.weight"], null, patch_size, 0);
    let x = concatenate([this.w["visual.class_embedding"].data, patches]);
    x = add(x, this.w["visual.positional_embedding"].data);
    x = this.norm("visual.ln_pre", x);
    x = this.tower("visual.transformer", x, D, vision_layers, vision_heads, false).subarray(0, D);
    return project(this.norm("visual.ln_post", x), this.w["visual.proj"]);
  }
}

/** The cosine of two places on the unit sphere: CLIP's score. */
const cosine = (text, image) => sum(text.map((value, i) => value * image[i]));

const concatenate = (parts) => Float32Array.from(parts.flatMap((part) => Array.from(part)));

/** x (D) times a matrix (D, E), then scaled to length 1. */
function project(x, { shape: [, E], data }) {
  const column = (e) => sum(x.map((value, i) => value * data[i * E + e]));
  const y = Float64Array.from({ length: E }, (_, e) => column(e)), length = Math.hypot(...y);
  return Float32Array.from(y, (value) => value / length);
}

// ---- 06 · Drawing: from logits to a token, from a caption to an image ---------------------------

/** Push the logits of the caption away from those of no caption: u + guidance * (c - u). */
const guide = (caption, nothing, s) => caption.map((c, i) => nothing[i] + s * (c - nothing[i]));

/** Logits with -Infinity outside the top_k likeliest, of equal ones the first, and outside the nucleus
 *  of what is left: the fewest tokens that together have probability top_p or more. */
function restrict(logits, topK = null, topP = null) {
  if (topK === null && topP === null) return logits;
  const out = Float64Array.from(logits), order = Array.from(out.keys()).sort((a, b) => out[b] - out[a]);
  if (topK !== null) for (const token of order.slice(topK)) out[token] = -Infinity;
  if (topP !== null && topP < 1) {
    const p = softmax(out.slice());
    let before = 0; // probability of all likelier tokens
    order.forEach((token, rank) => {
      if (rank > 0 && before >= topP) out[token] = -Infinity;
      before += p[token];
    });
  }
  return out;
}

/** The chance of each token to be drawn: softmax(logits / temperature) of what top_k and top_p leave;
 *  at temperature 0 the likeliest for sure. */
function chances(logits, temperature, topK, topP) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  if (temperature === 0) return Float64Array.from(logits, (_, i) => (i === logits.indexOf(most) ? 1 : 0));
  return softmax(restrict(Float64Array.from(logits, (value) => (value - most) / temperature), topK, topP));
}

/** Draw one token with one uniform number in [0, 1): where the sum of the chances first exceeds it. */
function draw(p, uniform) {
  let rest = uniform * sum(p), token = -1;
  do rest -= p[++token]; while (rest >= 0 && token < p.length - 1);
  return token;
}

/** One caption and the image tokens that follow it. options: temperature, topK, topP, guidance. */
class Sampler {
  constructor(dalle, ids) {
    this.dalle = dalle;
    this.caption = new Decoder(dalle, ids);
    this.nothing = null; // reads the empty caption, once guidance asks for it
  }

  /** Logits of the cell that follows `tokens`. */
  predict(tokens, guidance = 1) {
    const caption = this.caption.predict(tokens);
    if (guidance === 1) return caption;
    this.nothing ??= new Decoder(this.dalle, []);
    return guide(caption, this.nothing.predict(tokens), guidance);
  }

  /** The chance of each code in the cell that follows `tokens`. */
  chances(tokens, { temperature = 1, topK = null, topP = null, guidance = 1 } = {}) {
    return chances(this.predict(tokens, guidance), temperature, topK, topP);
  }

  /** Draw all cells after `prompt`; cell k uses draws[k]. Returns the tokens of all cells. */
  sample(options, draws, prompt = []) {
    const tokens = prompt.slice();
    while (tokens.length < this.dalle.cells) {
      tokens.push(draw(this.chances(tokens, options), draws[tokens.length]));
    }
    return tokens;
  }
}
