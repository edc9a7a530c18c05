// The worker: answers the page's questions one after another, so that the page itself never waits.
// A question is {id, name, ...}; the answer is {id, answer} or {id, error}.
"use strict";

let tokenizer, dalle, dvae, clip, judge, sampler, readIds, facts;

/** n numbers in [0, 1) that depend on the seed alone. Source: Tommy Ettinger 2017, mulberry32. */
function uniforms(seed, n) {
  let state = Math.imul(seed, 0x9e3779b1) >>> 0;
  return Array.from({ length: n }, () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  });
}

/** Show a token as a person would read it: bytes that are no text of their own as numbers. */
function show(token) {
  const text = tokenizer.decode([tokenizer.ids.get(token)]);
  if (!/[\ufffd\x00-\x1f\x7f-\x9f]/.test(text)) return text === " " ? "␣" : text;
  const hex = (c) => tokenizer.alphabet.indexOf(c).toString(16).toUpperCase();
  return [...token].map((c) => `‹${hex(c)}›`).join("");
}

/** An image as the bytes that a canvas takes, (S, S, 4). */
function pixels(image) {
  const out = new Uint8ClampedArray((image.length / 3) * 4).fill(255);
  for (let i = 0; i < image.length; i++) out[Math.floor(i / 3) * 4 + (i % 3)] = 255 * image[i];
  return out;
}

/** The part of an image that lies in a cell, as the bytes that a canvas takes. */
function patch(image, cell) {
  const { grid, side } = facts,
    size = side / grid,
    out = [];
  const top = Math.floor(cell / grid) * size,
    left = (cell % grid) * size;
  for (let y = top; y < top + size; y++)
    out.push(...image.subarray((y * side + left) * 3, (y * side + left + size) * 3));
  return pixels(Float32Array.from(out));
}

/** Read a caption, unless it was the last one that was read. */
function read(ids) {
  if (String(ids) === readIds) return;
  sampler = new Sampler(dalle, ids);
  readIds = String(ids);
}

/** Run `work` and add its milliseconds to ms[name]. */
function timed(ms, name, work) {
  const start = performance.now(),
    result = work();
  ms[name] = (ms[name] ?? 0) + performance.now() - start;
  return result;
}

const answers = {
  /** Unpack the models; the page hears how far we are. */
  load({ models: header, weights, tokenizer: file }) {
    const start = performance.now();
    const models = unpack(header, weights, (progress) => postMessage({ progress }));
    tokenizer = new BPETokenizer(file);
    dalle = new DALLE(models.dalle);
    dvae = new DiscreteVAE(models.dvae);
    clip = new CLIP(models.clip);
    judge = models.judge ? new Judge(models.judge) : null;
    const {
      text_len: textLen,
      grid,
      n_heads: heads,
      image_vocab: codes,
      caption_dropout: emptied,
    } = dalle.config;
    facts = {
      textLen,
      grid,
      heads,
      codes,
      emptied,
      cells: dalle.cells,
      kinds: dalle.kinds,
      side: dvae.config.image_size,
      vocab: tokenizer.vocab.length,
      judge: judge !== null,
      ms: performance.now() - start,
    };
    return facts;
  },

  /** Cut a caption into tokens, and tell the merges of each word. */
  tokens({ caption }) {
    const parts = tokenizer.explain(caption).map(({ tokens, steps }) => ({
      tokens: tokens.map((token) => ({ text: show(token), id: tokenizer.ids.get(token) })),
      steps: steps.map((pieces) => pieces.map(show)),
    }));
    const ids = parts.flatMap(({ tokens }) => tokens.map(({ id }) => id));
    return { parts, ids, most: dalle.config.text_len - 1 };
  },

  /** Draw the cell that follows `tokens`. */
  next({ ids, tokens, options, uniform }) {
    const ms = {};
    read(ids);
    const p = timed(ms, "token", () => sampler.chances(tokens, options));
    const token = draw(p, uniform);
    return { token, p: p[token], ms };
  },

  /** Decode tokens, -1 where nothing is drawn yet. */
  image({ tokens }) {
    const ms = {},
      image = timed(ms, "decode", () => dvae.decode(tokens));
    return { pixels: pixels(image), ms };
  },

  /** The likeliest codes of a cell, given the cells before it, each with the patch that it would put
   *  there among the tokens as they are. `also` is shown whatever its chance. */
  codes({ ids, tokens, cell, options, most, also }) {
    read(ids);
    const p = sampler.chances(tokens.slice(0, cell), options);
    const order = Array.from(p.keys()).sort((a, b) => p[b] - p[a]);
    const shown = order.slice(0, most).filter((code) => p[code] > 0);
    if (also >= 0 && !shown.includes(also)) shown.push(also);
    return shown.map((code) => {
      const image = dvae.decode(tokens.map((token, i) => (i === cell ? code : token)));
      return { code, p: p[code], patch: patch(image, cell) };
    });
  },

  /** The cell whose choice was widest: where the chances had the largest entropy. */
  widest({ ids, tokens, options }) {
    read(ids);
    const entropy = tokens.map(
      (_, cell) =>
        -sum(sampler.chances(tokens.slice(0, cell), options).map((p) => (p ? p * Math.log(p) : 0))),
    );
    return entropy.indexOf(Math.max(...entropy));
  },

  /** What the state at `position` may see in each layer, and how much each head looks at it (null
   *  where the state has not been computed). */
  looks({ ids, tokens, position }) {
    read(ids);
    const cell = position - dalle.config.text_len;
    const known = cell < 0 || !tokens.slice(0, cell).includes(-1);
    if (known && cell >= 0) sampler.predict(tokens.slice(0, cell));
    const { n_heads: H } = dalle.config,
      T = dalle.states,
      part = (looks, at) => looks.slice(at, at + T);
    let expected = null;
    if (position < Math.min(ids.length, dalle.config.text_len)) {
      expected = chances(sampler.caption.predictText(position), 1)[ids[position]];
    }
    return {
      expected,
      layers: sampler.caption.layers.map(({ kind, looks }) => ({
        kind,
        seen: dalle.seen[kind][position],
        heads: known ? Array.from({ length: H }, (_, h) => part(looks, (position * H + h) * T)) : null,
      })),
    };
  },

  /** Draw a whole image at once, and let CLIP and the judge look at it. */
  candidate({ ids, options, draws, prompt }) {
    const ms = {},
      start = performance.now();
    timed(ms, "text", () => read(ids));
    const tokens = timed(ms, "prior", () => sampler.sample(options, draws, prompt));
    const image = timed(ms, "decode", () => dvae.decode(tokens));
    ms.image = performance.now() - start;
    const score = timed(ms, "clip", () => cosine(clip.encodeText(ids), clip.encodeImage(image)));
    const reading = judge && timed(ms, "judge", () => judge.read(image));
    return { tokens, pixels: pixels(image), score, reading, ms };
  },

  /** The random numbers of one image: one for each cell. */
  draws({ seed }) {
    return uniforms(seed, facts.cells);
  },
};

onmessage = ({ data: { id, name, ...question } }) => {
  try {
    postMessage({ id, answer: answers[name](question) });
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
};
