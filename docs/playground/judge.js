// The judge: a small classifier that says what an image shows. It is no part of DALL-E, and never
// saw its images: it learnt from true ones. Source: minidalle's evaluation/judge.py.
"use strict";

class Judge extends Model {
  /** The likeliest value of each attribute of an image (S, S, 3), as {attribute: value}. */
  read(image) {
    let x = image.map((value) => 2 * value - 1), side = this.config.image_size;
    for (let i = 0; this.w[`convs.${i}.weight`]; i++) {
      x = relu(conv2d(x, side, this.w[`convs.${i}.weight`], this.w[`convs.${i}.bias`], i === 0 ? 1 : 2));
      side = i === 0 ? side : side >> 1;
    }
    const n = x.length / side ** 2; // torch flattens channel by channel
    x = Float32Array.from(x, (_, i) => x[(i % side ** 2) * n + Math.floor(i / side ** 2)]);
    const logits = this.linear("head", relu(this.linear("hidden", x)));
    let at = 0;
    return Object.fromEntries(Object.entries(this.config.values).map(([name, answers]) => {
      const part = Array.from(logits.subarray(at, at += answers.length));
      return [name, answers[part.indexOf(Math.max(...part))]];
    }));
  }
}
