"""The whole evaluation on tiny untrained models, against loops and a planted truth."""

import json
import math
from pathlib import Path

import pytest
import torch

from minidalle.clip import CLIP
from minidalle.config import get_config, replace
from minidalle.dalle import DALLE
from minidalle.data import shapes
from minidalle.dvae import DiscreteVAE, map_pixels
from minidalle.evaluation import metrics
from minidalle.evaluation.candidates import Candidates, draw_candidates, reconstruct
from minidalle.evaluation.judge import Judge
from minidalle.evaluation.measure import (
    Cases,
    accuracies,
    cases_of,
    draw_all,
    evaluate,
    likelihood,
    load_cases,
)
from minidalle.evaluation.report import as_text, tables
from minidalle.generate import Pipeline
from minidalle.tokenizer import PAD, BPETokenizer

SHIPPED = Path(__file__).parents[2] / "data" / "checkpoints" / "toy" / "judge"
SIZES = (
    "dvae.n_hid=16", "dvae.n_init=8", "dalle.n_layers=1", "dalle.n_heads=2", "dalle.head_dim=8",
    "clip.vision_width=12", "clip.vision_layers=1", "clip.text_width=12", "clip.text_layers=1",
    "clip.vision_heads=3", "clip.text_heads=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    config = get_config("toy", SIZES)
    tokenizer = BPETokenizer.train(shapes.draw(200, 0, "train").captions, 512)
    models = DiscreteVAE(config.dvae), DALLE(config.dalle), CLIP(config.clip)
    models[-1].tokenizer = tokenizer
    return Pipeline(tokenizer, *(m.eval() for m in models))


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(SHIPPED)


def toy_cases(n: int, seed: int) -> dict[str, Cases]:
    return load_cases(get_config("toy", [f"seed={seed}"]), n)


def test_everything_is_measured_and_fits_json(pipeline, judge):
    cases = toy_cases(6, 0)
    numbers = evaluate(pipeline, judge, cases, draw_all(pipeline, cases, 3))
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    for kind in ("seen", "held_out"):
        found = numbers["kinds"][kind]
        for key in ("true", "rebuilt", "one", "best"):
            assert {"exact", *shapes.ATTRIBUTES} >= set(found[key]) > {"exact", "shape"}
        assert list(found["best_of"]) == ["1", "2"]
        assert found["true"]["exact"]["share"] == 1
        assert list(found["frechet"]["best"]) == ["0", "1", "2", "4", "8"]
        assert set(found["confusion"]["shape"]) <= set(shapes.SHAPES)
    text = as_text(tables(numbers, most=2))
    assert text.startswith("Seen pairs, 6 captions: judged right, %") and "bits per dim" in text
    lines = text.splitlines()
    assert lines[1].split()[-1] == "exact" and len({len(line) for line in lines[1:6]}) == 1
    assert sum(line.startswith("  best of 3") for line in lines) == 2
    worst = lines.index("Seen pairs, 6 captions: exact by pair, %, the worst first")
    assert "exact by" not in lines[worst + 3] and lines[worst + 4].startswith("Seen pairs")


def test_without_judge_and_clip_the_rest_is_measured(pipeline):
    bare = Pipeline(pipeline.tokenizer, pipeline.codebook, pipeline.prior)
    scenes = shapes.draw(3, 0, "test")
    cases = {"all": Cases(scenes.images, scenes.captions)}
    found = evaluate(bare, None, cases, draw_all(bare, cases, 2))["kinds"]["all"]
    assert set(found) == {"n", "likelihood", "codebook", "reconstruction"}


def test_a_clip_that_knows_lifts_the_best_and_leaves_the_mean(judge):
    """Two of four candidates are the true image, and CLIP is told which."""
    some = toy_cases(8, 4)["seen"]  # the judge reads all of them right
    wrong = shapes.render([{**a, "shape": _other(a["shape"])} for a in some.attributes])
    images = torch.stack([some.images, wrong, some.images, wrong], 1)
    scores = torch.tensor([[0.3, 0.1, 0.2, 0.0]]).expand(8, -1)
    found = accuracies(judge, some, some.images / 255, Candidates(images, scores))
    assert found["one"]["exact"]["share"] == 0.5
    assert found["one"]["colour"]["share"] == found["best"]["exact"]["share"] == 1
    assert found["best_of"]["2"]["share"] == pytest.approx(5 / 6)  # one pair of six is all wrong
    for attribute in some.attributes:
        row = found["confusion"]["shape"][attribute["shape"]]
        assert row[attribute["shape"]] == row[_other(attribute["shape"])] == sum(row.values()) / 2


def _other(shape: str) -> str:
    return shapes.SHAPES[(shapes.SHAPES.index(shape) + 1) % len(shapes.SHAPES)]


def test_what_a_caption_leaves_open_is_not_asked_for(judge):
    some = toy_cases(40, 0)["seen"]
    asks = ["position" in w for w in some.wanted]
    assert 0 < sum(asks) < 40
    drawn = Candidates(some.images[:, None], torch.zeros(40, 1))
    found = accuracies(judge, some, some.images / 255, drawn)
    assert found["one"]["position"]["n"] == sum(asks)
    assert found["one"]["exact"]["n"] == 40


def test_candidates_are_every_caption_s_own(pipeline):
    captions = shapes.draw(3, 5, "test").captions
    drawn = draw_candidates(pipeline, captions, 5, seed=1, batch_size=4)
    assert drawn.images.shape == (3, 5, 3, 32, 32) and drawn.images.dtype == torch.uint8
    for i, caption in enumerate(captions):
        want = pipeline.score([caption], drawn.images[i] / 255)
        assert torch.allclose(drawn.scores[i], want, atol=5e-3)  # images were rounded to 8 bits
        assert torch.equal(drawn.best()[i], drawn.images[i, drawn.scores[i].argmax()] / 255)
    again = draw_candidates(pipeline, captions, 5, seed=1, batch_size=15)
    assert torch.equal(again.images, drawn.images)


@pytest.mark.parametrize("floor", [None, 0.0])
def test_likelihood_by_a_loop(pipeline, floor, monkeypatch):
    """Where the scale has a floor, the likeliest one takes its place, whatever the floor is."""
    codebook = pipeline.codebook
    monkeypatch.setattr(codebook, "config", replace(codebook.config, min_log_b=floor))
    scenes = shapes.draw(3, 0, "test")
    cases = Cases(scenes.images, scenes.captions)
    _, tokens = reconstruct(pipeline, scenes.images)
    found = likelihood(pipeline, cases, tokens)
    text_nats = image_nats = pixel_nats = 0.0
    n_text = 0
    with torch.no_grad():
        decoded = map_pixels(codebook.decode(tokens)).logit()
    scale = (map_pixels(scenes.images / 255).logit() - decoded).abs().mean().log()
    scale = scale.expand(1, 3, 32, 32)
    for image, caption, z in zip(scenes.images, scenes.captions, tokens, strict=True):
        ids = pipeline.tokenizer.encode(caption)
        padded = torch.tensor([ids + [PAD] * (pipeline.prior.caption_len - len(ids))])
        with torch.no_grad():
            text_logits, image_logits = pipeline.prior(padded, z.flatten()[None])
            mu, log_b = codebook.decode_vectors(codebook.code_vectors(z[None]))
            if floor is not None:
                mu, log_b = mu.clamp(math.log(0.1 / 0.9), math.log(0.9 / 0.1)), scale
        n_text += len(ids)
        text_nats -= sum(text_logits[0].log_softmax(1)[i, t].item() for i, t in enumerate(ids))
        log_p = image_logits[0].log_softmax(1)
        image_nats -= sum(log_p[i, t].item() for i, t in enumerate(z.flatten().tolist()))
        pixel_nats += metrics.pixel_nats(image[None], mu, log_b).sum().item()
    assert found["text_nats_per_token"] == pytest.approx(text_nats / n_text, rel=1e-4)
    assert found["image_nats_per_token"] == pytest.approx(image_nats / (3 * 64), rel=1e-4)
    bits = (image_nats + pixel_nats) / math.log(2) / (3 * 3072)
    assert found["bits_per_dim"] == pytest.approx(bits, rel=1e-4)


def test_cases_come_from_any_data_set():
    class Two:
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return torch.full((3, 8, 8), i, dtype=torch.uint8), f"caption {i}"

        def attributes(self, i):
            return {"digit": str(i)} if self.known else None

    data = Two()
    data.known = True
    cases = cases_of(data, 9)
    assert cases.captions == ["caption 0", "caption 1"] and cases.wanted[1] == {"digit": "1"}
    assert cases.images[:, 0, 0, 0].tolist() == [0, 1]
    data.known = False
    assert cases_of(data, 1).wanted is None
