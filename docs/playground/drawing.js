// Section 3: an image is drawn cell by cell, paused, rewound and changed by hand.
"use strict";

const TOP_K = () =>
  [1, 2, 3, 5, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    .filter((k) => k < facts.codes)
    .concat(facts.codes);

function options() {
  const k = TOP_K()[+$("topK").value],
    p = +$("topP").value;
  return {
    temperature: +$("temperature").value,
    topK: k >= facts.codes ? null : k,
    topP: p >= 1 ? null : p,
    guidance: +$("guidance").value,
  };
}

function showSettings() {
  const { temperature, topK, topP, guidance } = options();
  const told = {
    temperature: temperature === 0 ? "likeliest" : temperature.toFixed(2),
    topK: topK ?? "all",
    topP: topP === null ? "all" : topP.toFixed(2),
    guidance: guidance === 1 ? "off" : guidance.toFixed(2),
  };
  for (const [name, text] of Object.entries(told)) {
    $("settings").querySelector(`output[for=${name}]`).textContent = text;
    $(name).setAttribute("aria-valuetext", String(text));
  }
}

/** The tokens as far as they are drawn, -1 after that. */
const drawn = () => art.tokens.map((token, cell) => (cell < art.next ? token : -1));

function buildDrawing() {
  const cells = $("drawing").querySelector(".cells"),
    { grid } = facts;
  cells.replaceChildren(
    ...Array.from({ length: facts.cells }, (_, cell) =>
      make("button", { type: "button", onclick: () => act(() => select(cell)) }),
    ),
  );
  cells.style.gridTemplate = `repeat(${grid}, 1fr) / repeat(${grid}, 1fr)`;
  walk(cells, grid);
  reachable(cells);
  $("topK").max = TOP_K().length - 1;
  $("topK").value = $("topK").max;
  $("speed").value = calm ? "once" : "watch";
  $("guidanceNote").textContent =
    facts.emptied > 0
      ? `The prior saw an empty caption in ${percent(facts.emptied)} of its training; guidance compares with it.`
      : "Guidance compares with an empty caption. This prior was never trained on one, so large values " +
        "may spoil the image.";
  showSettings();
}

/** Bring the buttons and cells up to date with the image. */
function refresh() {
  const all = facts.cells,
    n = art.next;
  $("play").textContent = playing ? "Pause" : n === 0 ? "Draw" : n < all ? "Go on" : "Replay";
  $("again").hidden = art.selected < 0;
  $("again").textContent = art.hand.has(art.selected)
    ? "Keep this code, draw the rest again"
    : "Draw again from here";
  [...$("drawing").querySelectorAll("button")].forEach((button, cell) => {
    button.classList.toggle("undrawn", cell >= n);
    button.classList.toggle("next", cell === n);
    button.classList.toggle("shown", cell === art.shown && !playing);
    button.classList.toggle("selected", cell === art.selected);
    button.classList.toggle("hand", cell < n && art.hand.has(cell));
    const code = `code ${art.tokens[cell]}${art.hand.has(cell) ? ", chosen by hand" : ""}`;
    say(button, `Cell ${cell}, ${place(cell)}: ${cell < n ? code : "not drawn yet"}`);
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
  art.shown = cell;
  if (cell < 0) {
    $("codesTitle").textContent = "The likeliest codes";
    $("codesNote").textContent =
      "Draw or step: the codes of each cell appear here, as the patches that they stand for.";
    $("codes").replaceChildren();
    return;
  }
  const found = await ask("codes", {
    ids: art.ids,
    tokens: drawn(),
    cell,
    options: options(),
    most: 8,
    also: art.tokens[cell],
  });
  const focused = $("codes").contains(document.activeElement) ? document.activeElement.dataset.code : null;
  $("codesTitle").textContent = `The likeliest codes of cell ${cell} (${place(cell)})`;
  $("codesNote").textContent =
    `${why}Choose one to put its patch there. The chances are those at the settings below.`;
  $("codes").replaceChildren(
    ...found.map(({ code, p, patch }) => {
      const bar = make("span", { className: "bar" });
      bar.style.width = `${100 * p}%`;
      const button = make(
        "button",
        { type: "button", onclick: () => act(() => choose(cell, code)) },
        paint(make("canvas"), patch),
        make("span", {}, make("span", { className: "unseen-text" }, "code "), String(code)),
        bar,
        make("span", { className: "chance" }, percent(p)),
      );
      button.dataset.code = code;
      button.setAttribute("aria-pressed", String(code === art.tokens[cell]));
      return make("li", {}, button);
    }),
  );
  if (focused !== null)
    ($("codes").querySelector(`[data-code="${focused}"]`) ?? $("codes").querySelector("button")).focus();
}

/** Draw one cell. */
async function step(withCodes) {
  const cell = art.next;
  if (art.hand.has(cell)) art.tokens[cell] = art.hand.get(cell);
  else {
    const { token, ms } = await ask("next", {
      ids: art.ids,
      tokens: art.tokens.slice(0, cell),
      options: options(),
      uniform: art.draws[cell],
    });
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
  const handAhead = [...art.hand.keys()].some((cell) => cell >= art.next);
  if (speed === "once" && !handAhead) await finish();
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
  const { tokens, ms } = await ask("candidate", {
    ids: art.ids,
    options: options(),
    draws: art.draws,
    prompt,
  });
  if (!prompt.length && options().guidance === 1)
    Object.assign(measured, { image: ms.image, token: ms.prior / facts.cells });
  art.tokens = tokens;
  art.next = facts.cells;
  art.selected = -1;
  await showImage();
}

/** Take the caption of the field, unless it does not fit, and start an empty image. */
async function begin() {
  await readCaption();
  if (!fits()) {
    $("caption").focus();
    return false;
  }
  const draws = await ask("draws", { seed: Math.trunc(+$("seed").value) || 0 });
  art = {
    caption: typed.caption.trim(),
    ids: typed.ids,
    words: wordsOf(typed),
    tokens: Array(facts.cells).fill(-1),
    next: 0,
    hand: new Map(),
    draws,
    selected: -1,
  };
  return true;
}

async function drawNow() {
  if (await begin()) {
    await showImage();
    await play();
  }
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
