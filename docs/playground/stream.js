// Sections 1 and 2: the caption as tokens, and the stream of states that look at each other.
"use strict";

// ---- 1 · A caption becomes tokens -------------------------------------------------------------------

async function readCaption() {
  const caption = $("caption").value;
  const answer = await ask("tokens", { caption });
  if (caption !== $("caption").value) return; // typed on meanwhile
  typed = { ...answer, caption };
  const n = typed.ids.length,
    bad = n === 0 || n > typed.most;
  $("fits").textContent =
    n === 0
      ? `Type a caption of 1 to ${typed.most} tokens, for example “${data.examples.first}”.`
      : n > typed.most
        ? `${n} tokens, but at most ${typed.most} fit: leave out ${n - typed.most} or more (struck out below).`
        : `${n} tokens of at most ${typed.most}.`;
  $("fits").classList.toggle("bad", bad);
  $("caption").setAttribute("aria-invalid", String(bad));
  showChips();
}

/** The tokens of a caption as texts, one after another. */
const wordsOf = ({ parts }) => parts.flatMap(({ tokens }) => tokens.map(({ text }) => text));

/** Does the typed caption fit? */
const fits = () => typed.ids.length > 0 && typed.ids.length <= typed.most;

function showChips() {
  let n = 0;
  $("chips").replaceChildren(
    ...typed.parts.map((part) => {
      const space = part.tokens[0].text === "␣";
      const chip = make(
        "button",
        { type: "button", className: space ? "chip space" : "chip" },
        ...part.tokens.map(({ text, id }) =>
          make(
            "span",
            { className: ++n > typed.most ? "token over" : "token" },
            text,
            make("small", {}, String(id)),
          ),
        ),
      );
      say(chip, part.tokens.map(({ text, id }) => `${space ? "space" : text}, token ${id}`).join("; "));
      chip.onpointerenter = chip.onfocus = chip.onclick = () => showMerges(part);
      return chip;
    }),
  );
  reachable($("chips"));
  const longest = typed.parts.reduce((a, b) => (b.steps.length > a.steps.length ? b : a), { steps: [] });
  if (longest.steps.length) showMerges(longest);
  else $("merges").replaceChildren();
}

/** A number and what is counted: "1 merge", "2 merges". */
const many = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;

/** Show how the bytes of a part became its tokens, merge by merge. */
function showMerges({ steps, tokens }) {
  const word = steps[0].join(""),
    count = steps.length - 1;
  const told =
    count === 0
      ? " stands alone: nothing to merge."
      : `: ${many(count, "merge")}, ${many(tokens.length, "token")}.`;
  const shown = word.length * steps.length <= 600 ? steps : []; // more would fill the page
  $("merges").replaceChildren(
    make("p", {}, make("b", {}, `“${word}”`), told),
    make(
      "p",
      {},
      ...shown.map((pieces, i) => {
        const fresh = i ? pieces.findIndex((piece, j) => piece !== steps[i - 1][j]) : -1;
        return make(
          "span",
          { className: "stage" },
          i ? "→ " : "",
          ...pieces.map((piece, j) =>
            make("span", { className: j === fresh ? "token new" : "token" }, piece),
          ),
        );
      }),
    ),
  );
}

// ---- 2 · The stream ---------------------------------------------------------------------------------

let lookAt = 0,
  looking = false,
  lookAgain = false;

const quote = (text) => `“${text === "␣" ? "space" : text}”`;

/** What stands at a text position: the start, a token, or a pad. */
function wordAt(position) {
  if (position === 0) return { text: "start", name: "start of text" };
  const token = art.words?.[position - 1];
  return token ? { text: token, name: quote(token) } : { text: "pad", name: `pad ${position}` };
}

const place = (cell) => `row ${Math.floor(cell / facts.grid) + 1}, column ${(cell % facts.grid) + 1}`;

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
    button.onpointerenter =
      button.onfocus =
      button.onclick =
        () => {
          lookAt = position;
          showState();
        };
  });
  for (const container of [$("words"), picture]) {
    walk(container, grid);
    reachable(container);
  }
  const unique = ["row", "column", "conv"].filter((kind) => kinds.includes(kind));
  $("kinds").append(
    ...unique.map((kind, i) => {
      const radio = make("input", {
        type: "radio",
        name: "kind",
        value: kind,
        checked: i === 0,
        onchange: showState,
      });
      return make("label", {}, radio, ` a ${kind} layer`);
    }),
  );
  lookAt = textLen + Math.floor(cells / 2) + Math.floor(grid / 2);
}

/** Bring the labels of the stream up to date, then the state that is pointed at. */
function refreshStream() {
  [...$("words").children].forEach((button, i) => {
    const { text, name } = wordAt(i);
    button.textContent = button.title = text;
    button.classList.toggle("pad", text === "pad");
    say(button, `Text state ${i}: ${name}`);
  });
  [...$("streamPicture").querySelectorAll("button")].forEach((button, cell) => {
    button.classList.toggle("undrawn", cell >= art.next);
    say(button, `Image state ${cell}: ${place(cell)}`);
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
    const position = lookAt,
      answer = await ask("looks", { ids: art.ids, tokens: drawn(), position });
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
  const { textLen, grid, cells, heads } = facts,
    cell = position - textLen;
  const { name } = wordAt(position);
  const next = art.words?.[position];
  $("state").textContent =
    cell >= 0
      ? `Cell ${cell} (${place(cell)}): this state predicts the code of its cell.`
      : `Text state ${position} holds ${position ? name : "the start of the text"}` +
        (expected === null
          ? "."
          : ` and predicts the next token, ${quote(next)}: chance ${percent(expected)}.`);
  const label = (k) => (k === position ? "itself" : k < textLen ? wordAt(k).name : `cell ${k - textLen}`);
  $("layers").replaceChildren(
    ...layers.map(({ kind, seen, heads: looks }, i) => {
      const image = seen.filter((k) => k >= textLen).length,
        text = seen.length - image;
      let told = `may see ${many(text, "text state")}` + (cell >= 0 ? ` and ${many(image, "cell")}` : "");
      if (looks) {
        const mean = seen
          .map((k) => [looks.reduce((sum, head) => sum + head[k] / heads, 0), k])
          .sort((a, b) => b[0] - a[0]);
        told +=
          "; looks most at " +
          mean
            .slice(0, 3)
            .map(([p, k]) => `${label(k)} (${percent(p)})`)
            .join(", ") +
          ".";
      } else told += "; not drawn yet, so there is nothing to look with.";
      const maps = Array.from({ length: looks ? heads : 1 }, (_, h) =>
        make(
          "div",
          {},
          drawLook(seen, looks && looks[h], position),
          make("span", {}, looks ? `head ${h + 1}` : "mask"),
        ),
      );
      const shown = make("div", { className: "heads" }, ...maps);
      shown.setAttribute("aria-hidden", "true"); // the sentence says it
      return make(
        "div",
        { className: "layer" },
        make("p", {}, make("b", {}, `Layer ${i + 1}, ${kind}: `), told),
        shown,
      );
    }),
  );
}

/** A small map of the stream: text states above, image cells below, a square each. */
function drawLook(seen, looks, position) {
  const { textLen, grid, cells } = facts,
    size = 10,
    gap = 4,
    style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const textRows = Math.ceil(textLen / grid),
    canvas = make("canvas", { width: grid * size, height: (textRows + grid) * size + gap });
  const context = canvas.getContext("2d");
  const corner = (k) =>
    k < textLen
      ? [(k % grid) * size, Math.floor(k / grid) * size]
      : [((k - textLen) % grid) * size, (textRows + Math.floor((k - textLen) / grid)) * size + gap];
  context.fillStyle = colour("--faint");
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (let k = 0; k < textLen + cells; k++) {
    const [x, y] = corner(k),
      visible = seen.includes(k);
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
