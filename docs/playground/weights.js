// The weights: 16-bit numbers, written as text in the page.
"use strict";

/** All 65,536 half-precision numbers as single precision: sign, 5 bits exponent, 10 bits mantissa. */
function halfTable() {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    if (exponent === 31) table[bits] = mantissa ? NaN : sign * Infinity;
    else if (exponent === 0) table[bits] = sign * mantissa * 2 ** -24;
    else table[bits] = sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
  }
  return table;
}

/** Return the models of `header`, {stage: {config, tensors: {name: [shape, first number]}}}, with
 *  each tensor as {shape, data}. text: all numbers as base64. progress(share) is told how far we are. */
function unpack(header, text, progress = () => {}) {
  const half = halfTable(), block = 1 << 18; // a multiple of 4: whole bytes
  const bytes = new Uint8Array(Math.floor(text.length * 3 / 4));
  let n = 0;
  for (let at = 0; at < text.length; at += block) {
    const part = atob(text.slice(at, at + block));
    for (let i = 0; i < part.length; i++) bytes[n++] = part.charCodeAt(i);
    progress(Math.min(1, (at + block) / text.length));
  }
  const models = {};
  for (const [stage, { config, tensors }] of Object.entries(header)) {
    models[stage] = { config, tensors: {} };
    for (const [name, [shape, first]] of Object.entries(tensors)) {
      const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
      for (let i = 0, b = 2 * first; i < data.length; i++, b += 2) {
        data[i] = half[bytes[b] | bytes[b + 1] << 8];
      }
      models[stage].tensors[name] = { shape, data };
    }
  }
  return models;
}
