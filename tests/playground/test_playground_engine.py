"""The playground's engine under Node says what the package says, for any sizes of the models."""

import json
import random
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from helpers.playground import CAPTIONS, PLAYGROUND, ROOT, TOY, build, write_odd_models

from minidalle.attention import column_mask, conv_mask, row_mask
from minidalle.evaluation.judge import Judge
from minidalle.generate import Pipeline, sample
from minidalle.tokenizer import PAD, normalise
from minidalle.transformer import layer_kinds

ODD = [
    "",
    "   ",
    "A LARGE RED HEART",
    "ÄÖÜ ß ẞ İstanbul ΣΊΣΥΦΟΣ",
    "🟥❤️👩‍👩‍👧‍👦 a 🦖 dinosaur",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 300,
    "ab" * 200,
    "日本語のテキスト　全角スペース",
    "ＦＵＬＬ　ｗｉｄｔｈ",
    "“curly” ‘quotes’ and ʼtick",
    "ﬁne ﬂow oﬀice ﬃ ﬄ ﬅ ﬆ Ǆ ǆ ĳ ŉ",
    "tabs\tand\nnew\r\nlines\u2028here\u00a0and\u3000there",
    "a&amp;b &lt;b&gt; &quot;x&quot; &#65; &nbsp;",
    "<b>bold</b> &amp; kept",
    "<script>alert(1)</script>",
    "control\x00\x07\x1b[31mred\x1b[0m\x7f\ufeff",
    "cafe\u0301 noe\u0308l",
    "lone \ud800 surrogate \udc00",
    "3 reds, 4 blues; 5% of a-b_c (d) [e] {f}!?",
    "naïve façade Ω≈ç√∫ привет مرحبا",
]


def many_captions(n: int) -> list[str]:
    """Captions of the world, the odd ones, and random mixtures of both and of other letters."""
    rng, captions = random.Random(0), CAPTIONS + ODD
    letters = "abcdefghijklmnopqrstuvwxyzäßé  ,.-'\"0123456789ABCDEFG🟦❤日\u0301\u200d"
    while len(captions) < n:
        words = " ".join(CAPTIONS).split()
        some = rng.choices(words, k=rng.randint(1, 8))
        noise = "".join(rng.choices(letters, k=rng.randint(0, 20)))
        captions.append(" ".join([*some, noise, rng.choice(words).upper()]))
    return captions[:n]


SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"guidance": 2.5},
    {"guidance": 0.0, "temperature": 0.0},
    {"temperature": 0.0},
    {"guidance": 3.0, "top_k": 9, "top_p": 0.9, "temperature": 1.1},
    {"prompt": 11},
    {"prompt": 20, "guidance": 1.5},
]


def draw_cases(pipeline: Pipeline) -> tuple[list[dict], list[torch.Tensor]]:
    """Return what the engine is to draw, and what the package drew with the same numbers."""
    cells, cases, drawn = pipeline.prior.config.grid**2, [], []
    texts = [pipeline.tokenizer.encode(caption) for caption in CAPTIONS]
    for seed, settings in enumerate(SETTINGS):
        ids, settings = texts[seed % len(texts)], dict(settings)
        prompt = drawn[-1].flatten()[: settings.pop("prompt", 0)] if drawn else None
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(1, cells, generator=torch.Generator().manual_seed(seed))[0].tolist()
        drawn.append(sample(pipeline.prior, ids, 1, prompt=prompt, generator=generator, **settings))
        names = {"top_k": "topK", "top_p": "topP"}
        options = {names.get(name, name): value for name, value in settings.items()}
        known = [] if prompt is None else prompt.tolist()
        cases.append({"ids": ids, "options": options, "draws": draws, "prompt": known})
    return cases, drawn


@pytest.fixture(scope="module", params=[pytest.param("toy", marks=pytest.mark.slow), "odd"])
def both(request, tmp_path_factory) -> SimpleNamespace:
    """What the package says and what the engine says, of the same cases.

    drawn: image tokens of the package, one for each of cases["samples"]; logits: its (text, image)
    logits of each of cases["streams"]; engine: the engine's answers.
    """
    if shutil.which("node") is None:
        pytest.skip("no node here: the playground's engine is not compared with the package")
    tmp = tmp_path_factory.mktemp(request.param)
    folder = TOY if request.param == "toy" else write_odd_models(tmp, judge=True)
    pipeline = Pipeline.load(folder)
    samples, drawn = draw_cases(pipeline)
    images = [image.flatten().tolist() for image in drawn]
    texts = [case["ids"] for case in samples]
    cases = {
        "captions": many_captions(200),
        "streams": [{"ids": texts[i], "image": images[i]} for i in (1, 3)],
        "samples": samples,
        "images": images,
    }
    (tmp / "content.json").write_text(json.dumps(build.collect(folder)))
    (tmp / "cases.json").write_text(json.dumps(cases))
    command = ["node", ROOT / "tests" / "helpers" / "playground.js", PLAYGROUND]
    command += [tmp / "content.json", tmp / "cases.json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    length, logits = pipeline.prior.config.text_len - 1, []
    for stream in cases["streams"]:
        text = torch.tensor(stream["ids"] + [PAD] * (length - len(stream["ids"])))
        with torch.no_grad():
            logits.append(pipeline.prior(text[None], torch.tensor(stream["image"])[None]))
    engine = json.loads(run.stdout)
    return SimpleNamespace(
        pipeline=pipeline, cases=cases, drawn=drawn, logits=logits, engine=engine, folder=folder
    )


def test_tokens_of_200_captions_are_equal(both):
    assert len(both.cases["captions"]) == 200
    for i, caption in enumerate(both.cases["captions"]):
        assert both.engine["normalised"][i] == both.engine["texts"][i] == normalise(caption)
        assert both.engine["ids"][i] == both.pipeline.tokenizer.encode(caption), caption


def test_logits_of_whole_streams_agree(both):
    for (text, image), found in zip(both.logits, both.engine["streams"], strict=True):
        for want, got in ((text[0], found["text"]), (image[0], found["image"])):
            assert (want - torch.tensor(got)).abs().max() < 1e-3


def test_heads_look_only_where_the_masks_allow_and_as_much_as_one(both):
    c, engine = both.pipeline.prior.config, both.engine
    masks = {
        "row": row_mask(c.text_len, c.grid),
        "column": column_mask(c.text_len, c.grid),
        "conv": conv_mask(c.text_len, c.grid, c.kernel),
    }
    assert engine["kinds"] == layer_kinds(c.n_layers)
    for kind, mask in masks.items():
        assert engine["masks"][kind] == [row.nonzero().flatten().tolist() for row in mask]
    for kind, looks in zip(engine["kinds"], engine["streams"][0]["looks"], strict=True):
        looks = torch.tensor(looks).view(len(masks[kind]), c.n_heads, -1)  # (T, H, T)
        assert (looks.sum(-1) - 1).abs().max() < 1e-5
        assert looks.transpose(0, 1)[:, ~masks[kind]].max() == 0


def test_the_same_numbers_draw_the_same_samples(both):
    cases, found = both.cases["samples"], both.engine["samples"]
    for case, want, got in zip(cases, both.drawn, found, strict=True):
        assert got == want.flatten().tolist(), case["options"]
    assert both.engine["ties"] == [0.5, 0.5, 0, 0]  # of equal logits the first


def test_greedy_images_are_identical(both):
    cases = both.cases["samples"]
    greedy = [i for i, case in enumerate(cases) if case["options"].get("temperature") == 0]
    assert len(greedy) == 3
    for i in greedy:
        assert both.engine["samples"][i] == both.drawn[i].flatten().tolist()


def test_a_cache_that_was_rewound_says_what_a_fresh_one_says(both):
    for used, fresh in both.engine["rewound"]:
        assert used == fresh


def test_decoded_images_agree(both):
    for tokens, got in zip(both.drawn, both.engine["images"], strict=True):
        want = both.pipeline.codebook.decode(tokens)[0].permute(1, 2, 0).flatten()
        assert (want - torch.tensor(got)).abs().max() < 1 / 255


def test_clip_scores_agree(both):
    scores = both.engine["scores"]
    for i, (tokens, got) in enumerate(zip(both.drawn, scores, strict=True)):
        image = both.pipeline.codebook.decode(tokens)
        want = both.pipeline.score([CAPTIONS[i % len(CAPTIONS)]], image).item()
        assert abs(want - got) < 1e-3


def test_the_judge_reads_the_same(both):
    if not (both.folder / "judge").is_dir():
        assert both.engine["readings"] is None
        return
    images = torch.cat([both.pipeline.codebook.decode(tokens) for tokens in both.drawn])
    for name, answers in Judge.load(both.folder / "judge").read(images).items():
        assert [reading[name] for reading in both.engine["readings"]] == answers


def test_the_engine_is_short_and_depends_on_nothing():
    text = (PLAYGROUND / "engine.js").read_text()
    assert len(text.splitlines()) <= 500
    assert not re.search(r"\b(require|import|fetch|XMLHttpRequest|importScripts)\b", text)


def test_the_page_is_one_file_with_working_links():
    page = build.build(TOY)
    assert len(page.encode()) < 7_000_000
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sorted({link for link in links if link != "data:,"}) == sorted(
        f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("0[0-6]_*.ipynb")
    )
    assert "notebook:" not in page and "http:" not in page and "https:" not in page
    assert page.count("</script>") == 4
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", page)


@pytest.mark.parametrize(("data", "pairs"), [("shapes", 8), ("mnist", 10)])
def test_the_held_out_pairs_of_a_world_are_among_the_trials(data, pairs):
    examples = build.examples(data)
    assert len(set(examples["held_out"])) == pairs
    assert examples["unknown"]["word"] in examples["unknown"]["caption"].split()
    for caption in (examples["first"], *examples["held_out"], examples["two"]["caption"]):
        assert not re.search(r"\ba orange|\ban [^o]", caption)


def test_the_build_refuses_what_the_page_cannot_show(tmp_path):
    with pytest.raises(ValueError, match="no trained dvae"):
        build.collect(tmp_path)
    with pytest.raises(ValueError, match="not for 'cifar'"):
        build.examples("cifar")
    folder = write_odd_models(tmp_path)
    path = folder / "clip" / "config.json"
    config = json.loads(path.read_text())
    config["clip"]["image_size"] = 48
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="different sizes"):
        build.collect(folder)


def test_every_caption_of_the_page_fits_the_shipped_prior():
    pipeline = Pipeline.load(TOY)
    found = build.examples("shapes")
    captions = [found["first"], *found["held_out"], found["two"]["caption"]]
    for caption in [*captions, found["unknown"]["caption"]]:
        assert pipeline.encode(caption), caption
