// The judge: a small classifier that says what an image shows. It is no part of DALL-E, and never
// saw its images: it learnt from true ones. Source: minidalle's evaluation/judge.py.
"use strict";

class Judge extends Model {
  /** The likeliest value of each attribute of an image (S, S, 3), as {attribute: value}. */
  read(image) {
    let x = image.map((value) => 2 * value - 1), side = this.config.image_size;
    for (let i = 0; this.w[`convs.${i}.weight`]; i++) {
      const norms = i > 0 && this.config.blocks > 0, stride = i === 0 || norms ? 1 : 2;
      x = conv2d(x, side, this.w[`convs.${i}.weight`], this.w[`convs.${i}.bias`], stride);
      side = i === 0 ? side : side >> 1;
      if (norms) x = this.norm(`blocks.${i - 1}.0`, halve(x, 2 * side));
      for (let j = 2; norms && this.w[`blocks.${i - 1}.${j}.weight`]; j += 3) {
        x = this.norm(`blocks.${i - 1}.${j + 1}`, conv2d(relu(x), side, this.w[`blocks.${i - 1}.${j}.weight`], null));
      }
      x = relu(x);
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

  /** A batch norm as it is after training: each channel of x (.., n) by its mean and variance then. */
  norm(name, x) {
    const [gain, bias, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
      .map((part) => this.w[`${name}.${part}`].data), n = gain.length;
    return x.map((value, i) => (value - mean[i % n]) * gain[i % n] / Math.sqrt(variance[i % n] + 1e-5) + bias[i % n]);
  }
}

/** Halve both sides: the largest of every two by two, image (side, side, n) -> (side / 2, side / 2, n). */
function halve(image, side) {
  const n = image.length / side ** 2, half = side >> 1;
  return Float32Array.from({ length: half * half * n }, (_, i) => {
    const c = i % n, x = Math.floor(i / n) % half, y = Math.floor(i / n / half);
    const at = (2 * y * side + 2 * x) * n + c;
    return Math.max(image[at], image[at + n], image[at + side * n], image[at + side * n + n]);
  });
}
