// Sections 4 and 5: sixteen candidates ranked by CLIP, and captions that try to fool the prior.
"use strict";

// ---- 4 · Candidates ---------------------------------------------------------------------------------

/** Which values of each attribute a caption asks for, by its words. */
function asked(caption) {
  const text = ` ${caption.toLowerCase().replace(/[,.]/g, " ").split(/\s+/).join(" ")} `,
    found = {};
  for (const [name, values] of Object.entries(data.models.judge?.config.values ?? {})) {
    found[name] = values.filter((value) =>
      (data.examples.synonyms[value] ?? [value]).some((word) => text.includes(` ${word} `)),
    );
  }
  return found;
}

/** The judge's reading as words, ✓ where the caption asks for it and ✗ where for something else. */
function showReading(reading, caption) {
  const wanted = asked(caption),
    words = make("span", { className: "reading" });
  if (!reading) return words;
  words.append("judge: ");
  Object.entries(reading)
    .filter(([, value]) => value !== "none")
    .forEach(([name, value], i) => {
      const wrong = wanted[name].length > 0 && !wanted[name].includes(value);
      words.append(
        i ? ", " : "",
        make(
          "span",
          { className: wrong ? "wrong" : "" },
          (wanted[name].length === 0 ? "" : wrong ? "✗\u00a0" : "✓\u00a0") + value,
        ),
      );
    });
  return words;
}

const asAsked = (reading, caption) =>
  Object.entries(asked(caption)).every(([name, values]) => !values.length || values.includes(reading[name]));

let ranking = false;

async function rank() {
  if (ranking) {
    ranking = false;
    return;
  }
  await readCaption();
  if (!fits()) {
    $("caption").focus();
    return;
  }
  ranking = true;
  const { ids, caption } = typed,
    words = wordsOf(typed);
  const n = 16,
    found = [],
    sum = {};
  $("rank").textContent = "Stop";
  $("rankProgress").hidden = false;
  $("rankNote").textContent = `Drawing ${n} candidates …`;
  const start = performance.now();
  for (let i = 0; i < n && ranking; i++) {
    const draws = await ask("draws", { seed: 7919 * (i + 1) + (Math.trunc(+$("seed").value) || 0) });
    const candidate = await ask("candidate", { ids, options: options(), draws });
    found.push({ ...candidate, draws, ids, words });
    for (const [name, ms] of Object.entries(candidate.ms)) sum[name] = (sum[name] ?? 0) + ms;
    $("rankProgress").value = i + 1;
    showCandidates(found, caption);
  }
  const seconds = (performance.now() - start) / 1000;
  if (found.length === n) measured.sixteen = 1000 * seconds;
  const right = found.filter(({ reading }) => reading && asAsked(reading, caption)).length;
  const clip = ((sum.clip ?? 0) / 1000).toFixed(1);
  let told = `${found.length} candidates in ${seconds.toFixed(1)} s, of it CLIP ${clip} s.`;
  if (facts.judge && found.length) {
    const [first] = showCandidates(found, caption);
    const best = asAsked(first.reading, caption) ? "one of these" : "not";
    told += ` The judge finds ${right} of them as asked; the first of the ranking is ${best}.`;
  }
  $("rankNote").textContent = told;
  ranking = false;
  $("rank").textContent = "Draw sixteen and rank them";
  $("rankProgress").hidden = true;
  showMeasured();
}

/** Show candidates, the best first; one that is opened goes to section 3. */
function showCandidates(found, caption) {
  const order = [...found].sort((a, b) => b.score - a.score);
  $("candidates").replaceChildren(
    ...order.map(({ tokens, pixels, score, reading, draws, ids, words }, i) => {
      const open = () =>
        act(async () => {
          art = {
            caption: caption.trim(),
            ids,
            words,
            tokens: tokens.slice(),
            next: facts.cells,
            hand: new Map(),
            draws,
            selected: -1,
          };
          await showImage();
          await showWidest();
          $("h-drawing").scrollIntoView();
          $("drawing").querySelector("button").focus({ preventScroll: true });
        });
      return make(
        "button",
        { type: "button", className: "candidate", onclick: open },
        paint(make("canvas"), pixels),
        make("span", {}, make("b", {}, `${i + 1}.`), ` CLIP ${score.toFixed(3)}`),
        showReading(reading, caption),
      );
    }),
  );
  reachable($("candidates"));
  return order;
}

// ---- 5 · Try to fool it -----------------------------------------------------------------------------

/** One trial: a caption, four images of it, and why they look as they do. */
function trial(title, captions, why) {
  let at = 0;
  const caption = make("p", {}),
    four = make("div", { className: "four" }),
    reason = make("p", {});
  const other = make("button", { type: "button", hidden: captions.length < 2 }, "Another one");
  const mine = make("button", { type: "button" }, "Take this caption to the top");
  async function show() {
    const text = captions[at];
    caption.replaceChildren(make("b", {}, `“${text}”`));
    four.replaceChildren(
      ...[1, 2, 3, 4].map(() => make("figure", {}, make("canvas", { width: 32, height: 32 }))),
    );
    const { parts, ids, most } = await ask("tokens", { caption: text });
    reason.textContent =
      ids.length <= most ? "" : `This caption has ${ids.length} tokens, and at most ${most} fit.`;
    if (ids.length > most) return;
    const found = [];
    for (let i = 0; i < 4; i++) {
      const draws = await ask("draws", { seed: i + 1 });
      found.push(await ask("candidate", { ids, options: {}, draws }));
      if (captions[at] !== text) return;
      const canvas = four.children[i].querySelector("canvas");
      canvas.setAttribute("role", "img");
      say(canvas, `Image ${i + 1} of “${text}”`);
      paint(canvas, found[i].pixels);
      four.children[i].append(showReading(found[i].reading, text));
    }
    reason.textContent = why({
      text,
      parts,
      readings: found.map(({ reading }) => reading).filter((reading) => reading),
    });
  }
  other.onclick = () => {
    at = (at + 1) % captions.length;
    show().catch(fail);
  };
  mine.onclick = () => {
    $("caption").value = captions[at];
    readCaption();
    $("caption").focus();
  };
  const element = make(
    "div",
    { className: "trial" },
    make("h3", {}, title),
    caption,
    four,
    reason,
    make("div", { className: "buttons" }, other, mine),
  );
  element.show = show;
  return element;
}

function buildFool() {
  const { held_out, two, unknown } = data.examples;
  const right = (readings, text) => readings.filter((reading) => asAsked(reading, text)).length;
  const counted = ({ text, readings }) =>
    readings.length ? ` Here the judge reads ${right(readings, text)} of ${readings.length} as asked.` : "";
  const trials = [
    trial(
      "A pair that it has never seen",
      held_out,
      (found) =>
        "This pair of thing and colour was kept out of the training. The prior met each of the two " +
        "words in other captions, and puts them together here for the first time." +
        counted(found),
    ),
    trial(
      "More than it ever saw",
      [two.caption],
      ({ readings }) =>
        `${two.why}. All the words of the caption pull at the same cells, and nothing has taught the ` +
        "prior which word belongs to which thing." +
        (readings.length
          ? " The judge, too, knows no other images, so its reading is the nearest of what it knows."
          : ""),
    ),
    trial("A word that it does not know", [unknown.caption], ({ parts }) => {
      const part = parts.find(({ steps }) => steps[0].join("") === unknown.word);
      const pieces = part.tokens.map(({ text }) => text);
      return (
        `No text is out of reach of the tokenizer: it cuts “${unknown.word}” into ${pieces.length} ` +
        `tokens, ${pieces.join(" · ")}. The prior never saw them in this order, so the image follows ` +
        "the rest of the caption, and the thing in it is a guess."
      );
    }),
  ];
  $("fool").append(...trials);
  // The images are drawn when the section comes near, so that the first image does not wait for them.
  const watch = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      (async () => {
        for (const element of trials) await element.show();
      })().catch(fail);
    },
    { rootMargin: "300px" },
  );
  watch.observe($("fool"));
}
