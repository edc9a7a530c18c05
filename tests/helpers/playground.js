// Runs the playground's engine under Node: node playground.js FOLDER CONTENT CASES, answers as JSON.
"use strict";
const fs = require("fs"), vm = require("vm");
const [folder, contentFile, casesFile] = process.argv.slice(2);
for (const name of ["weights.js", "engine.js", "judge.js"]) {
  vm.runInThisContext(fs.readFileSync(`${folder}/${name}`, "utf8"), { filename: name });
}
const content = JSON.parse(fs.readFileSync(contentFile, "utf8"));
const cases = JSON.parse(fs.readFileSync(casesFile, "utf8"));
globalThis.content = content;
globalThis.cases = cases;
const answer = vm.runInThisContext(`(() => {
  const models = unpack(content.models, content.weights);
  const tokenizer = new BPETokenizer(content.tokenizer);
  const dalle = new DALLE(models.dalle), dvae = new DiscreteVAE(models.dvae), clip = new CLIP(models.clip);
  const judge = models.judge && new Judge(models.judge);
  const list = (x) => Array.from(x), images = cases.images.map((tokens) => dvae.decode(tokens));
  const answers = {
    ids: cases.captions.map((caption) => tokenizer.encode(caption)),
    texts: cases.captions.map((caption) => tokenizer.decode(tokenizer.encode(caption))),
    normalised: cases.captions.map(normalise),
    streams: cases.streams.map(({ ids, image }, stream) => {
      const decoder = new Decoder(dalle, ids);
      return {
        image: image.map((_, cell) => list(decoder.predict(image.slice(0, cell)))),
        text: Array.from({ length: dalle.config.text_len - 1 }, (_, i) => list(decoder.predictText(i))),
        looks: stream ? null : decoder.layers.map(({ looks }) => list(looks)),
      };
    }),
    samples: cases.samples.map(({ ids, options, draws, prompt }) => new Sampler(dalle, ids).sample(options, draws, prompt)),
    images: images.map(list),
    scores: images.map((image, i) => cosine(clip.encodeText(cases.samples[i].ids), clip.encodeImage(image))),
    readings: judge ? images.map((image) => judge.read(image)) : null,
    masks: Object.fromEntries(["row", "column", "conv"].map((kind) => [kind, dalle.seen[kind]])),
    kinds: dalle.kinds,
    ties: list(chances([1, 1, 1, 0], 1, 2, null)),
  };
  // A cache that was rewound, changed and continued says what a fresh one says.
  const { ids } = cases.streams[0], image = cases.streams[0].image.slice(0, -1), used = new Decoder(dalle, ids);
  used.predict(image);
  const other = [...image.slice(0, 3), (image[3] + 1) % dalle.config.image_vocab, ...image.slice(4)];
  answers.rewound = [image.slice(0, 5), other, image.slice(0, 9), []].map((tokens) =>
    [list(used.predict(tokens)), list(new Decoder(dalle, ids).predict(tokens))]);
  return answers;
})()`);
fs.writeFileSync(1, JSON.stringify(answer));
