// What you see. The worker computes; this file asks it, and shows what it answers.
"use strict";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A chance as a person would write it. */
function percent(p) {
  const digits = p >= 0.0995 ? 0 : p >= 0.00995 ? 1 : 2;
  return `${p > 0 && p < 0.00005 ? "< 0.01" : (100 * p).toFixed(digits)} %`;
}

/** Make an element. Text is always set as text, so nothing typed can become markup. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Show pixels (side * side * 4 bytes) on a canvas. */
function paint(canvas, pixels) {
  canvas.width = canvas.height = Math.sqrt(pixels.length / 4);
  canvas.getContext("2d").putImageData(new ImageData(pixels, canvas.width), 0, 0);
  return canvas;
}

// ---- The worker -------------------------------------------------------------------------------------

const waiting = new Map();
let questions = 0, worker;

/** Ask the worker by name; the promise is kept when it answers. */
function ask(name, question = {}) {
  return new Promise((resolve, reject) => {
    waiting.set(++questions, { resolve, reject });
    worker.postMessage({ ...question, id: questions, name });
  });
}

function hear({ data: { id, answer, error, progress } }) {
  if (progress !== undefined) { $("progress").value = progress; return; }
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(answer); else reject(new Error(error));
}

function fail(error) {
  $("broken").textContent = `Something went wrong: ${error.message}. Loading the page again may help.`;
  $("broken").hidden = false;
}

// ---- State ------------------------------------------------------------------------------------------

let facts; // sizes of the models
let typed = { parts: [], ids: [], most: 0, caption: "" }; // the caption in the field, and its tokens
// The image of section 3. tokens: -1 where nothing is drawn; next: the cell to draw; hand: codes chosen
// by hand; draws: one random number for each cell; chance: what each code had when it was drawn.
let art = { caption: "", ids: [], tokens: [], next: 0, hand: new Map(), draws: [], selected: -1 };
let playing = false, work = Promise.resolve(), redraws = 0;
const measured = {}; // milliseconds

/** Stop what is playing, then do something to the image; one thing after another. */
function act(task) {
  playing = false;
  work = work.then(task).catch(fail).then(refresh);
  return work;
}

/** The arrow keys walk over the buttons in `container`; Tab goes to one of them only. */
function walk(container, columns) {
  const buttons = () => [...container.querySelectorAll("button")];
  container.addEventListener("keydown", (event) => {
    const all = buttons(), at = all.indexOf(document.activeElement);
    const row = typeof columns === "function" ? columns() : columns;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - row, ArrowDown: at + row, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    if (all[to]) all[to].focus();
  });
  container.addEventListener("focusin", (event) => {
    for (const button of buttons()) button.tabIndex = button === event.target ? 0 : -1;
  });
}

/** After new buttons were put into a container of `walk`: the first one is reached with Tab. */
function reachable(container) {
  [...container.querySelectorAll("button")].forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
}

// ---- 1 · A caption becomes tokens -------------------------------------------------------------------

async function readCaption() {
  const caption = $("caption").value;
  const answer = await ask("tokens", { caption });
  if (caption !== $("caption").value) return; // typed on meanwhile
  typed = { ...answer, caption };
  const n = typed.ids.length, bad = n === 0 || n > typed.most;
  $("fits").textContent = n === 0
    ? `Type a caption of 1 to ${typed.most} tokens, for example “${data.examples.first}”.`
    : n > typed.most
      ? `${n} tokens, but at most ${typed.most} fit: leave out ${n - typed.most} or more (struck out below).`
      : `${n} tokens of at most ${typed.most}.`;
  $("fits").classList.toggle("bad", bad);
  $("caption").setAttribute("aria-invalid", String(bad));
  showChips();
}

const fits = () => typed.ids.length > 0 && typed.ids.length <= typed.most;

function showChips() {
  let n = 0;
  $("chips").replaceChildren(...typed.parts.map((part) => {
    const space = part.tokens[0].text === "␣";
    const chip = make("button", { type: "button", className: space ? "chip space" : "chip" }, ...part.tokens.map(({ text, id }) =>
      make("span", { className: ++n > typed.most ? "token over" : "token" }, text, make("small", {}, String(id)))));
    chip.ariaLabel = part.tokens.map(({ text, id }) => `${space ? "space" : text}, token ${id}`).join("; ");
    chip.onpointerenter = chip.onfocus = chip.onclick = () => showMerges(part);
    return chip;
  }));
  reachable($("chips"));
  const longest = typed.parts.reduce((a, b) => (b.steps.length > a.steps.length ? b : a), { steps: [] });
  if (longest.steps.length) showMerges(longest); else $("merges").replaceChildren();
}

function showMerges({ steps, tokens }) {
  const word = steps[0].join(""), count = steps.length - 1;
  const told = count === 0 ? " stands alone: nothing to merge."
    : `: ${count} ${count === 1 ? "merge" : "merges"}, ${tokens.length} ${tokens.length === 1 ? "token" : "tokens"}.`;
  const shown = word.length * steps.length <= 600 ? steps : []; // more would fill the page
  $("merges").replaceChildren(make("p", {}, make("b", {}, `“${word}”`), told), make("p", {}, ...shown.map((pieces, i) => {
    const fresh = i ? pieces.findIndex((piece, j) => piece !== steps[i - 1][j]) : -1;
    return make("span", { className: "stage" }, i ? "→ " : "",
      ...pieces.map((piece, j) => make("span", { className: j === fresh ? "token new" : "token" }, piece)));
  })));
}

// ---- 2 · The stream ---------------------------------------------------------------------------------

let lookAt = 0, looking = false, lookAgain = false;

const quote = (text) => `“${text === "␣" ? "space" : text}”`;

/** What stands at a text position: the start, a token, or a pad. */
function wordAt(position) {
  if (position === 0) return { text: "start", name: "start of text" };
  const token = art.words?.[position - 1];
  return token ? { text: token, name: quote(token) } : { text: "pad", name: `pad ${position}` };
}

const place = (cell) => `row ${Math.floor(cell / facts.grid) + 1}, column ${cell % facts.grid + 1}`;

function buildStream() {
  const { textLen, cells, grid, kinds } = facts;
  const words = Array.from({ length: textLen }, (_, i) => make("button", { type: "button" }, String(i)));
  $("words").replaceChildren(...words);
  $("words").style.gridTemplateColumns = `repeat(${grid}, minmax(0, 1fr))`;
  const picture = $("streamPicture").querySelector(".cells");
  const states = Array.from({ length: cells }, () => make("button", { type: "button" }));
  picture.replaceChildren(...states);
  picture.style.gridTemplate = `repeat(${grid}, 1fr) / repeat(${grid}, 1fr)`;
  [...words, ...states].forEach((button, position) => {
    button.onpointerenter = button.onfocus = button.onclick = () => { lookAt = position; showState(); };
  });
  for (const container of [$("words"), picture]) { walk(container, grid); reachable(container); }
  const unique = ["row", "column", "conv"].filter((kind) => kinds.includes(kind));
  $("kinds").append(...unique.map((kind, i) => {
    const radio = make("input", { type: "radio", name: "kind", value: kind, checked: i === 0, onchange: showState });
    return make("label", {}, radio, ` a ${kind} layer`);
  }));
  lookAt = textLen + Math.floor(cells / 2) + Math.floor(grid / 2);
}

/** Bring the labels of the stream up to date, then the state that is pointed at. */
function refreshStream() {
  [...$("words").children].forEach((button, i) => {
    const { text, name } = wordAt(i);
    button.textContent = button.title = text;
    button.classList.toggle("pad", text === "pad");
    button.ariaLabel = `Text state ${i}: ${name}`;
  });
  [...$("streamPicture").querySelectorAll("button")].forEach((button, cell) => {
    button.classList.toggle("undrawn", cell >= art.next);
    button.ariaLabel = `Image state ${cell}: ${place(cell)}`;
  });
  showState();
}

/** Show what the state at `lookAt` may see and does see; only the newest wish is answered. */
async function showState() {
  lookAgain = true;
  if (looking || !art.ids.length) return;
  looking = true;
  while (lookAgain) {
    lookAgain = false;
    const position = lookAt, answer = await ask("looks", { ids: art.ids, tokens: drawn(), position });
    showMask(position, answer.layers);
    showLayers(position, answer);
  }
  looking = false;
}

function showMask(position, layers) {
  const kind = document.querySelector("input[name=kind]:checked").value;
  const seen = new Set(layers.find((layer) => layer.kind === kind).seen);
  [...$("stream").querySelectorAll("button")].forEach((button, i) => {
    button.classList.toggle("dim", !seen.has(i));
    button.classList.toggle("me", i === position);
  });
}

function showLayers(position, { layers, expected }) {
  const { textLen, grid, cells, heads } = facts, cell = position - textLen;
  const { name } = wordAt(position);
  const next = art.words?.[position];
  $("state").textContent = cell >= 0
    ? `Cell ${cell} (${place(cell)}): this state predicts the code of its cell.`
    : `Text state ${position} holds ${position ? name : "the start of the text"}`
      + (expected === null ? "." : ` and predicts the next token, ${quote(next)}: chance ${percent(expected)}.`);
  const label = (k) => (k === position ? "itself" : k < textLen ? wordAt(k).name : `cell ${k - textLen}`);
  $("layers").replaceChildren(...layers.map(({ kind, seen, heads: looks }, i) => {
    const image = seen.filter((k) => k >= textLen).length, text = seen.length - image;
    let told = `may see ${text} text ${text === 1 ? "state" : "states"}` + (cell >= 0 ? ` and ${image} ${image === 1 ? "cell" : "cells"}` : "");
    if (looks) {
      const mean = seen.map((k) => [looks.reduce((sum, head) => sum + head[k] / heads, 0), k]).sort((a, b) => b[0] - a[0]);
      told += "; looks most at " + mean.slice(0, 3).map(([p, k]) => `${label(k)} (${percent(p)})`).join(", ") + ".";
    } else told += "; not drawn yet, so there is nothing to look with.";
    const maps = Array.from({ length: looks ? heads : 1 }, (_, h) => make("div", {},
      drawLook(seen, looks && looks[h], position), make("span", {}, looks ? `head ${h + 1}` : "mask")));
    return make("div", { className: "layer" }, make("p", {}, make("b", {}, `Layer ${i + 1}, ${kind}: `), told),
      make("div", { className: "heads", ariaHidden: "true" }, ...maps));
  }));
}

/** A small map of the stream: text states above, image cells below, a square each. */
function drawLook(seen, looks, position) {
  const { textLen, grid, cells } = facts, size = 10, gap = 4, style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const textRows = Math.ceil(textLen / grid), canvas = make("canvas", { width: grid * size, height: (textRows + grid) * size + gap });
  const context = canvas.getContext("2d");
  const corner = (k) => (k < textLen ? [(k % grid) * size, Math.floor(k / grid) * size]
    : [((k - textLen) % grid) * size, (textRows + Math.floor((k - textLen) / grid)) * size + gap]);
  context.fillStyle = colour("--faint");
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (let k = 0; k < textLen + cells; k++) {
    const [x, y] = corner(k), visible = seen.includes(k);
    context.globalAlpha = 1;
    context.fillStyle = colour(visible ? "--seen" : "--unseen");
    context.fillRect(x, y, size - 1, size - 1);
    if (visible && looks) {
      context.globalAlpha = Math.sqrt(Math.min(1, looks[k])); // the root, so that small ones show
      context.fillStyle = colour("--looked");
      context.fillRect(x, y, size - 1, size - 1);
    }
  }
  const [x, y] = corner(position);
  context.globalAlpha = 1;
  context.lineWidth = 2;
  context.strokeStyle = colour("--self");
  context.strokeRect(x, y, size - 1, size - 1);
  return canvas;
}

// ---- 3 · Drawing ------------------------------------------------------------------------------------

const TOP_K = () => [1, 2, 3, 5, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096].filter((k) => k < facts.codes).concat(facts.codes);

function options() {
  const k = TOP_K()[+$("topK").value], p = +$("topP").value;
  return { temperature: +$("temperature").value, topK: k >= facts.codes ? null : k, topP: p >= 1 ? null : p, guidance: +$("guidance").value };
}

function showSettings() {
  const { temperature, topK, topP, guidance } = options();
  const told = { temperature: temperature === 0 ? "likeliest" : temperature.toFixed(2), topK: topK ?? "all", topP: topP === null ? "all" : topP.toFixed(2),
    guidance: guidance === 1 ? "off" : guidance.toFixed(2) };
  for (const [name, text] of Object.entries(told)) {
    $("settings").querySelector(`output[for=${name}]`).textContent = text;
    $(name).setAttribute("aria-valuetext", String(text));
  }
}

/** The tokens as far as they are drawn, -1 after that. */
const drawn = () => art.tokens.map((token, cell) => (cell < art.next ? token : -1));

function buildDrawing() {
  const cells = $("drawing").querySelector(".cells"), { grid } = facts;
  cells.replaceChildren(...Array.from({ length: facts.cells }, (_, cell) =>
    make("button", { type: "button", onclick: () => act(() => select(cell)) })));
  cells.style.gridTemplate = `repeat(${grid}, 1fr) / repeat(${grid}, 1fr)`;
  walk(cells, grid);
  reachable(cells);
  $("topK").max = TOP_K().length - 1;
  $("topK").value = $("topK").max;
  $("speed").value = calm ? "once" : "watch";
  $("guidanceNote").textContent = facts.emptied > 0
    ? `Guidance compares with an empty caption, which this prior saw in ${percent(facts.emptied)} of its training.`
    : "Guidance compares with an empty caption; this prior was never trained on one, so large values may spoil the image.";
  showSettings();
}

/** Bring the buttons and cells up to date with the image. */
function refresh() {
  const all = facts.cells, n = art.next;
  $("play").textContent = playing ? "Pause" : n === 0 ? "Draw" : n < all ? "Go on" : "Replay";
  $("again").hidden = art.selected < 0;
  $("again").textContent = art.hand.has(art.selected) ? "Keep this code, draw the rest again" : "Draw again from here";
  [...$("drawing").querySelectorAll("button")].forEach((button, cell) => {
    button.classList.toggle("undrawn", cell >= n);
    button.classList.toggle("next", cell === n);
    button.classList.toggle("selected", cell === art.selected);
    button.classList.toggle("hand", cell < n && art.hand.has(cell));
    button.ariaLabel = `Cell ${cell}, ${place(cell)}: ` + (cell < n ? `code ${art.tokens[cell]}${art.hand.has(cell) ? ", chosen by hand" : ""}` : "not drawn yet");
  });
  if (!playing) {
    $("progressNote").textContent = `${n} of ${all} cells drawn for “${art.caption}”.`;
    refreshStream();
  }
  showMeasured();
}

async function showImage() {
  const { pixels, ms } = await ask("image", { tokens: drawn() });
  measured.decode = ms.decode;
  paint($("streamPicture").querySelector("canvas"), pixels);
  paint($("drawing").querySelector("canvas"), pixels);
}

/** Show the likeliest codes of a cell that is drawn; `why` says why of this one. */
async function showCodes(cell, why = "") {
  if (cell < 0) {
    $("codesTitle").textContent = "The likeliest codes";
    $("codesNote").textContent = "Draw or step: the codes of each cell appear here, as the patches that they stand for.";
    $("codes").replaceChildren();
    return;
  }
  const found = await ask("codes", { ids: art.ids, tokens: drawn(), cell, options: options(), most: 8, also: art.tokens[cell] });
  const focused = $("codes").contains(document.activeElement) ? document.activeElement.dataset.code : null;
  $("codesTitle").textContent = `The likeliest codes of cell ${cell} (${place(cell)})`;
  $("codesNote").textContent = `${why}Choose one to put its patch there. The chances are those at the settings below.`;
  $("codes").replaceChildren(...found.map(({ code, p, patch }) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${100 * p}%`;
    const button = make("button", { type: "button", onclick: () => act(() => choose(cell, code)) },
      paint(make("canvas"), patch), make("span", {}, make("span", { className: "unseen-text" }, "code "), String(code)), bar, make("span", { className: "chance" }, percent(p)));
    button.dataset.code = code;
    button.ariaPressed = String(code === art.tokens[cell]);
    return make("li", {}, button);
  }));
  if (focused !== null) ($("codes").querySelector(`[data-code="${focused}"]`) ?? $("codes").querySelector("button")).focus();
}

/** Draw one cell. */
async function step(withCodes) {
  const cell = art.next;
  if (art.hand.has(cell)) art.tokens[cell] = art.hand.get(cell);
  else {
    const { token, ms } = await ask("next", { ids: art.ids, tokens: art.tokens.slice(0, cell), options: options(), uniform: art.draws[cell] });
    art.tokens[cell] = token;
    if (options().guidance === 1) measured.token = ms.token;
  }
  art.next++;
  art.selected = -1;
  await showImage();
  if (withCodes) await showCodes(cell);
}

/** Draw until the end or until something else is wished. */
async function play() {
  playing = true;
  const speed = $("speed").value;
  $("progressNote").textContent = `Drawing “${art.caption}” …`;
  if (speed === "once" && !art.hand.size) await finish();
  while (playing && art.next < facts.cells) {
    refresh();
    await step(speed === "watch");
    await new Promise((resume) => setTimeout(resume, speed === "watch" ? 60 : 0));
  }
  playing = false;
  await showWidest();
}

/** Show the codes of the cell whose choice was widest, or of the last one while some are missing. */
async function showWidest() {
  if (art.next < facts.cells) return showCodes(art.next - 1);
  const cell = await ask("widest", { ids: art.ids, tokens: art.tokens, options: options() });
  await showCodes(cell, "Of all cells this one left most to chance. ");
}

/** Draw all that is left at once. */
async function finish() {
  const prompt = art.tokens.slice(0, art.next);
  const { tokens, ms } = await ask("candidate", { ids: art.ids, options: options(), draws: art.draws, prompt });
  if (!prompt.length && options().guidance === 1) Object.assign(measured, { image: ms.image, token: ms.prior / facts.cells });
  art.tokens = tokens;
  art.next = facts.cells;
  art.selected = -1;
  await showImage();
}

/** Take the caption of the field, unless it does not fit, and start an empty image. */
async function begin() {
  await readCaption();
  if (!fits()) { $("caption").focus(); return false; }
  const draws = await ask("draws", { seed: Math.trunc(+$("seed").value) || 0 });
  art = { caption: typed.caption.trim(), ids: typed.ids, words: typed.parts.flatMap(({ tokens }) => tokens.map(({ text }) => text)),
    tokens: Array(facts.cells).fill(-1), next: 0, hand: new Map(), draws, selected: -1 };
  return true;
}

async function drawNow() {
  if (await begin()) { await showImage(); await play(); }
}

/** Play, pause, go on, or draw the caption that was typed meanwhile. */
async function playOrBegin() {
  if ($("caption").value.trim() !== art.caption) return drawNow();
  if (art.next >= facts.cells) await rewind(0);
  await play();
}

async function rewind(cell) {
  art.next = Math.max(0, cell);
  art.selected = -1;
  await showImage();
  await showCodes(art.next - 1);
}

/** Open a cell: its codes are shown, and one may be chosen. What comes before it is drawn first. */
async function select(cell) {
  while (art.next <= cell) await step(false);
  art.selected = cell;
  await showCodes(cell);
}

async function choose(cell, code) {
  art.tokens[cell] = code;
  art.hand.set(cell, code);
  art.selected = cell;
  await showImage();
  await showCodes(cell);
}

/** Draw again from the open cell with new random numbers; a code chosen by hand there is kept. */
async function drawAgain() {
  const from = art.selected + (art.hand.has(art.selected) ? 1 : 0);
  const fresh = await ask("draws", { seed: 1000003 + 97 * ++redraws });
  art.draws = art.draws.map((number, cell) => (cell < from ? number : fresh[cell]));
  for (const cell of [...art.hand.keys()]) if (cell >= from) art.hand.delete(cell);
  await rewind(from);
  await play();
}

// ---- 4 · Candidates ---------------------------------------------------------------------------------

/** Which values of each attribute a caption asks for, by its words. */
function asked(caption) {
  const text = ` ${caption.toLowerCase().replace(/[,.]/g, " ").split(/\s+/).join(" ")} `, found = {};
  for (const [name, values] of Object.entries(data.models.judge?.config.values ?? {})) {
    found[name] = values.filter((value) => (data.examples.synonyms[value] ?? [value]).some((word) => text.includes(` ${word} `)));
  }
  return found;
}

/** The judge's reading as words, ✓ where the caption asks for it and ✗ where for something else. */
function showReading(reading, caption) {
  const wanted = asked(caption), words = make("span", { className: "reading" });
  if (!reading) return words;
  words.append("judge: ");
  Object.entries(reading).filter(([, value]) => value !== "none").forEach(([name, value], i) => {
    const wrong = wanted[name].length > 0 && !wanted[name].includes(value);
    words.append(i ? ", " : "", make("span", { className: wrong ? "wrong" : "" }, (wanted[name].length === 0 ? "" : wrong ? "✗\u00a0" : "✓\u00a0") + value));
  });
  return words;
}

const asAsked = (reading, caption) =>
  Object.entries(asked(caption)).every(([name, values]) => !values.length || values.includes(reading[name]));

let ranking = false;

async function rank() {
  if (ranking) { ranking = false; return; }
  await readCaption();
  if (!fits()) { $("caption").focus(); return; }
  ranking = true;
  const { ids, caption } = typed, n = 16, found = [], sum = {};
  $("rank").textContent = "Stop";
  $("rankProgress").hidden = false;
  $("rankNote").textContent = `Drawing ${n} candidates …`;
  const start = performance.now();
  for (let i = 0; i < n && ranking; i++) {
    const draws = await ask("draws", { seed: 7919 * (i + 1) + (Math.trunc(+$("seed").value) || 0) });
    const candidate = await ask("candidate", { ids, options: options(), draws });
    found.push({ ...candidate, draws });
    for (const [name, ms] of Object.entries(candidate.ms)) sum[name] = (sum[name] ?? 0) + ms;
    $("rankProgress").value = i + 1;
    showCandidates(found, caption, ids);
  }
  const seconds = (performance.now() - start) / 1000;
  if (found.length === n) measured.sixteen = 1000 * seconds;
  const right = found.filter(({ reading }) => reading && asAsked(reading, caption)).length;
  const told = `${found.length} candidates in ${seconds.toFixed(1)} s, of it CLIP ${((sum.clip ?? 0) / 1000).toFixed(1)} s.`;
  $("rankNote").textContent = facts.judge ? `${told} The judge finds ${right} of them as asked; the first of the ranking is ${found.length && asAsked(showCandidates(found, caption, ids)[0].reading, caption) ? "one of these" : "not"}.` : told;
  ranking = false;
  $("rank").textContent = "Draw sixteen and rank them";
  $("rankProgress").hidden = true;
  showMeasured();
}

/** Show candidates, the best first; one that is opened goes to section 3. */
function showCandidates(found, caption, ids) {
  const order = [...found].sort((a, b) => b.score - a.score);
  const words = typed.parts.flatMap(({ tokens }) => tokens.map(({ text }) => text));
  $("candidates").replaceChildren(...order.map(({ tokens, pixels, score, reading, draws }, i) => {
    const open = () => act(async () => {
      art = { caption: caption.trim(), ids, words, tokens: tokens.slice(), next: facts.cells, hand: new Map(), draws, selected: -1 };
      await showImage();
      await showWidest();
      $("h-drawing").scrollIntoView();
      $("drawing").querySelector("button").focus({ preventScroll: true });
    });
    return make("button", { type: "button", className: "candidate", onclick: open },
      paint(make("canvas"), pixels), make("span", {}, make("b", {}, `${i + 1}.`), ` CLIP ${score.toFixed(3)}`), showReading(reading, caption));
  }));
  reachable($("candidates"));
  return order;
}

// ---- 5 · Try to fool it -----------------------------------------------------------------------------

/** One trial: a caption, four images of it, and why they look as they do. */
function trial(title, captions, why) {
  let at = 0;
  const caption = make("p", {}), four = make("div", { className: "four" }), reason = make("p", {});
  const other = make("button", { type: "button", hidden: captions.length < 2 }, "Another one");
  const mine = make("button", { type: "button" }, "Take this caption to the top");
  async function show() {
    const text = captions[at];
    caption.replaceChildren(make("b", {}, `“${text}”`));
    four.replaceChildren(...[1, 2, 3, 4].map(() => make("figure", {}, make("canvas", { width: 32, height: 32 }))));
    const { parts, ids, most } = await ask("tokens", { caption: text });
    reason.textContent = ids.length <= most ? "" : `This caption has ${ids.length} tokens, and at most ${most} fit.`;
    if (ids.length > most) return;
    const found = [];
    for (let i = 0; i < 4; i++) {
      const draws = await ask("draws", { seed: i + 1 });
      found.push(await ask("candidate", { ids, options: {}, draws }));
      if (captions[at] !== text) return;
      const canvas = four.children[i].querySelector("canvas");
      canvas.role = "img";
      canvas.ariaLabel = `Image ${i + 1} of “${text}”`;
      paint(canvas, found[i].pixels);
      four.children[i].append(showReading(found[i].reading, text));
    }
    reason.textContent = why({ text, parts, readings: found.map(({ reading }) => reading).filter((reading) => reading) });
  }
  other.onclick = () => { at = (at + 1) % captions.length; show().catch(fail); };
  mine.onclick = () => { $("caption").value = captions[at]; readCaption(); $("caption").focus(); };
  const element = make("div", { className: "trial" }, make("h3", {}, title), caption, four, reason,
    make("div", { className: "buttons" }, other, mine));
  element.show = show;
  return element;
}

function buildFool() {
  const { held_out, two, unknown } = data.examples;
  const counted = ({ text, readings }) => (readings.length
    ? ` Here the judge reads ${readings.filter((reading) => asAsked(reading, text)).length} of ${readings.length} as asked.` : "");
  const trials = [
    trial("A pair that it has never seen", held_out, (found) =>
      "This pair of thing and colour was kept out of the training. The prior met each of the two words in other captions, and puts them together here for the first time." + counted(found)),
    trial("More than it ever saw", [two.caption], ({ readings }) =>
      `${two.why}. All the words of the caption pull at the same cells, and nothing has taught the prior which word belongs to which thing.`
      + (readings.length ? " The judge, too, knows no other images, so its reading is the nearest of what it knows." : "")),
    trial("A word that it does not know", [unknown.caption], ({ parts }) => {
      const part = parts.find(({ steps }) => steps[0].join("") === unknown.word);
      const pieces = part.tokens.map(({ text }) => text);
      return `No text is out of reach of the tokenizer: it cuts “${unknown.word}” into ${pieces.length} tokens, ${pieces.join(" · ")}. The prior never saw them in this order, so the image follows the rest of the caption, and the thing in it is a guess.`;
    }),
  ];
  $("fool").append(...trials);
  // The images are drawn when the section comes near, so that the first image does not wait for them.
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    (async () => { for (const element of trials) await element.show(); })().catch(fail);
  }, { rootMargin: "300px" });
  watch.observe($("fool"));
}

// ---- The page ---------------------------------------------------------------------------------------

function showMeasured() {
  const numbers = Object.values(data.models).flatMap(({ tensors }) => Object.values(tensors))
    .reduce((sum, [shape]) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const parts = [];
  if (measured.token) parts.push(`${measured.token.toFixed(1)} ms for a token`);
  if (measured.decode) parts.push(`${measured.decode.toFixed(0)} ms to decode`);
  if (measured.image) parts.push(`${(measured.image / 1000).toFixed(2)} s for one image, all at once`);
  if (measured.sixteen) parts.push(`${(measured.sixteen / 1000).toFixed(1)} s for sixteen candidates with CLIP`);
  $("measured").textContent = `${(numbers / 1e6).toFixed(1)} million numbers are in this page. Measured on this device, on one core: ${parts.join(", ")}.`;
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("dark").setAttribute("aria-pressed", String(dark));
  if (facts) showState();
}

function connect() {
  $("caption").oninput = () => readCaption().catch(fail);
  $("form").onsubmit = (event) => { event.preventDefault(); act(drawNow); };
  $("play").onclick = () => { if (playing) act(() => {}); else act(playOrBegin); };
  $("step").onclick = () => act(async () => { if (art.next < facts.cells) await step(true); });
  $("back").onclick = () => act(() => rewind(art.next - 1));
  $("start").onclick = () => act(() => rewind(0));
  $("fresh").onclick = () => { $("seed").value = (Math.trunc(+$("seed").value) || 0) + 1; act(drawNow); };
  $("seed").onchange = () => act(drawNow);
  $("again").onclick = () => act(drawAgain);
  $("rank").onclick = () => rank().catch(fail);
  $("settings").oninput = showSettings;
  $("settings").onchange = () => act(() => showCodes(art.selected >= 0 ? art.selected : art.next - 1));
  $("large").onclick = () => {
    const large = document.documentElement.dataset.type !== "large";
    document.documentElement.dataset.type = large ? "large" : "";
    $("large").setAttribute("aria-pressed", String(large));
  };
  $("dark").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");
  walk($("chips"), 1);
  walk($("candidates"), () => Math.max(1, getComputedStyle($("candidates")).gridTemplateColumns.split(" ").length));
}

async function main() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches);
  dark.onchange = () => setTheme(dark.matches);
  $("loading").hidden = false;
  worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
  worker.onmessage = hear;
  worker.onerror = fail;
  facts = await ask("load", { models: data.models, weights: $("weights").textContent, tokenizer: data.tokenizer });
  $("weights").remove();
  for (const element of document.querySelectorAll("[data-fact]")) element.textContent = facts[element.dataset.fact];
  buildStream();
  buildDrawing();
  buildFool();
  connect();
  $("caption").value = data.examples.first;
  $("loading").hidden = true;
  $("all").hidden = false;
  await act(async () => {
    await begin();
    await finish();
    await showWidest();
  });
  document.documentElement.dataset.ready = "yes";
}

main().catch(fail);
