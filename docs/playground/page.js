// What you see. The worker computes; the page asks it, and shows what it answers. This file holds what
// all sections share; stream.js, drawing.js and candidates.js hold the sections.
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

/** Give an element the name that a screen reader says. */
const say = (element, name) => element.setAttribute("aria-label", name);

/** Show pixels (side * side * 4 bytes) on a canvas. */
function paint(canvas, pixels) {
  canvas.width = canvas.height = Math.sqrt(pixels.length / 4);
  canvas.getContext("2d").putImageData(new ImageData(pixels, canvas.width), 0, 0);
  return canvas;
}

// ---- The worker -------------------------------------------------------------------------------------

const waiting = new Map();
let questions = 0,
  worker;

/** Ask the worker by name; the promise is kept when it answers. */
function ask(name, question = {}) {
  return new Promise((resolve, reject) => {
    waiting.set(++questions, { resolve, reject });
    worker.postMessage({ ...question, id: questions, name });
  });
}

function hear({ data: { id, answer, error, progress } }) {
  if (progress !== undefined) {
    $("progress").value = progress;
    return;
  }
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(answer);
  else reject(new Error(error));
}

function fail(error) {
  $("broken").textContent = `Something went wrong: ${error.message}. Loading the page again may help.`;
  $("broken").hidden = false;
}

// ---- State ------------------------------------------------------------------------------------------

let facts; // sizes of the models
let typed = { parts: [], ids: [], most: 0, caption: "" }; // the caption in the field, and its tokens
// The image of section 3. tokens: -1 where nothing is drawn; next: the cell to draw; hand: codes chosen
// by hand, by cell; draws: one random number for each cell; shown: the cell whose codes are listed;
// selected: the same where a person opened it, or -1; words: the caption's tokens as texts.
let art = { caption: "", ids: [], tokens: [], next: 0, hand: new Map(), draws: [], selected: -1 };
let playing = false,
  work = Promise.resolve(),
  redraws = 0;
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
    const all = buttons(),
      at = all.indexOf(document.activeElement);
    const row = typeof columns === "function" ? columns() : columns;
    const to = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at - row,
      ArrowDown: at + row,
      Home: 0,
      End: all.length - 1,
    }[event.key];
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
  [...container.querySelectorAll("button")].forEach((button, i) => {
    button.tabIndex = i ? -1 : 0;
  });
}

// ---- The page ---------------------------------------------------------------------------------------

function showMeasured() {
  const numbers = Object.values(data.models)
    .flatMap(({ tensors }) => Object.values(tensors))
    .reduce((sum, [shape]) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const parts = [];
  if (measured.token) parts.push(`${measured.token.toFixed(1)} ms for a token`);
  if (measured.decode) parts.push(`${measured.decode.toFixed(0)} ms to decode`);
  if (measured.image) parts.push(`${(measured.image / 1000).toFixed(2)} s for one image, all at once`);
  if (measured.sixteen)
    parts.push(`${(measured.sixteen / 1000).toFixed(1)} s for sixteen candidates with CLIP`);
  $("measured").textContent =
    `${(numbers / 1e6).toFixed(1)} million numbers are in this page. ` +
    `Measured on this device, on one core: ${parts.join(", ")}.`;
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("dark").setAttribute("aria-pressed", String(dark));
  if (facts) showState();
}

function connect() {
  $("caption").oninput = () => readCaption().catch(fail);
  $("form").onsubmit = (event) => {
    event.preventDefault();
    act(drawNow);
  };
  $("play").onclick = () => {
    if (playing) act(() => {});
    else act(playOrBegin);
  };
  $("step").onclick = () =>
    act(async () => {
      if (art.next < facts.cells) await step(true);
    });
  $("back").onclick = () => act(() => rewind(art.next - 1));
  $("start").onclick = () => act(() => rewind(0));
  $("fresh").onclick = () => {
    $("seed").value = (Math.trunc(+$("seed").value) || 0) + 1;
    act(drawNow);
  };
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
  walk($("candidates"), () =>
    Math.max(1, getComputedStyle($("candidates")).gridTemplateColumns.split(" ").length),
  );
}

async function main() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches);
  dark.onchange = () => setTheme(dark.matches);
  $("loading").hidden = false;
  worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
  worker.onmessage = hear;
  worker.onerror = fail;
  facts = await ask("load", {
    models: data.models,
    weights: $("weights").textContent,
    tokenizer: data.tokenizer,
  });
  $("weights").remove();
  for (const element of document.querySelectorAll("[data-fact]"))
    element.textContent = facts[element.dataset.fact];
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
