"""`minidalle evaluate` on data of many kinds: the judge is found or made, pages are written."""

import json

import numpy as np
import pytest
import torch

from minidalle.clip import CLIP
from minidalle.config import get_config, replace
from minidalle.dalle import DALLE
from minidalle.data import digits
from minidalle.data.captioned import InMemory
from minidalle.dvae import DiscreteVAE
from minidalle.evaluation import judge as judges
from minidalle.evaluation import protocol, report
from minidalle.evaluation import run as runs
from minidalle.evaluation.judge import find_judge, move, true_images
from minidalle.evaluation.measure import load_cases
from minidalle.generate import Pipeline
from minidalle.tokenizer import BPETokenizer

TINY = (
    "dvae.n_hid=16", "dvae.n_init=8", "dalle.n_layers=1", "dalle.n_heads=2", "dalle.head_dim=8",
    "clip.vision_width=12", "clip.vision_layers=1", "clip.text_width=12", "clip.text_layers=1",
    "clip.vision_heads=3", "clip.text_heads=3", "data.n_train=240", "data.n_test=40",
)  # fmt: skip


def things(name: str, part: str) -> digits.Things:
    """Ten glyphs that anyone can tell apart: bars at ten heights; thinner in the test part."""
    images = np.zeros((40, 28, 28), np.uint8)
    for i in range(40):
        height = 2 + 2 * (i % 10)
        images[i, height : height + (5 if part == "train" else 4), 3:25] = 255
    names, at_most = (digits.DIGITS, 2) if name == "mnist" else (digits.CLOTHES, 1)
    return digits.Things(images, np.arange(40) % 10, names, at_most)


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "load_things", things)
    monkeypatch.setattr(judges, "SHIPPED", tmp_path / "shipped")  # the true one knows handwriting
    recipe = dict(steps=12, widths=(4, 4, 4, 4))
    monkeypatch.setattr(judges, "RECIPES", {"mnist": recipe})
    return get_config("mnist", TINY)


@pytest.fixture
def folder(mnist, monkeypatch, tmp_path):
    """A run of untrained models in place of a trained one."""
    torch.manual_seed(0)
    captions = load_cases(mnist, 40)["seen two"].captions
    tokenizer = BPETokenizer.train(captions, mnist.tokenizer.vocab_size)
    models = DiscreteVAE(mnist.dvae), DALLE(mnist.dalle), CLIP(mnist.clip)
    pipeline = Pipeline(tokenizer, *(m.eval() for m in models))
    pipeline.reranker.tokenizer = tokenizer
    monkeypatch.setattr(runs.Pipeline, "load", lambda folder, device="cpu": pipeline)
    monkeypatch.setattr(runs, "read_model", lambda folder: (None, mnist))
    monkeypatch.setattr(report, "N_SHOWN", 2)
    return tmp_path / "mnist"


def test_a_judge_learns_from_training_glyphs_of_all_pairs(mnist):
    images, attributes = true_images(mnist)
    apart = digits.held_out(digits.DIGITS)
    unseen = [(a["digit"], a["colour"]) in apart for a in attributes]
    assert len(images) == len(attributes) == 480 + 60
    assert not any(unseen[:480]) and all(unseen[480:])
    thick = (images[480:].float().std(dim=(1, 3)) > 1).sum(1)  # rows of a glyph, with its border
    assert thick.max() >= 5, "held-out pairs are drawn from training glyphs"


def test_the_judge_of_a_run_is_made_once_and_then_loaded(mnist, tmp_path, monkeypatch):
    made = find_judge(mnist, tmp_path)
    assert set(made.values) == {
        "count", "digit", "colour", "second digit", "second colour", "background",
    }  # fmt: skip
    monkeypatch.setattr(judges, "train_judge", None)
    again = find_judge(mnist, tmp_path)
    images = load_cases(mnist, 9)["held_out one"].images
    assert made.widths == again.widths == (4, 4, 4, 4) and len(again.read(images)["digit"]) == 9


def test_another_size_needs_another_judge_and_unlabelled_images_have_none(
    mnist, tmp_path, monkeypatch
):
    find_judge(mnist, tmp_path)
    larger = replace(mnist, data=replace(mnist.data, image_size=40))
    assert find_judge(larger, tmp_path).image_size == 40
    bare = InMemory(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), ["a", "b", "c"], None, "train")
    monkeypatch.setattr(judges.data, "load", lambda config, split: bare)
    emoji = replace(mnist, data=replace(mnist.data, name="emoji"))
    assert find_judge(emoji, tmp_path / "emoji") is None


def test_scenes_of_one_digit_and_of_two_are_counted_apart(mnist):
    cases = load_cases(mnist, 12)
    assert list(cases) == ["seen one", "held_out one", "seen two", "held_out two"]
    apart = digits.held_out(digits.DIGITS)
    for kind, some in cases.items():
        assert len(some.images) == len(some.captions) == 12
        assert {a["count"] for a in some.attributes} == {kind.split()[1]}
        inside = [(a["digit"], a["colour"]) in apart for a in some.attributes]
        assert all(inside) if kind.startswith("held_out") else not any(inside)


def test_a_deeper_judge_is_saved_with_its_norms(tmp_path):
    deep = judges.Judge({"class": ("cat", "dog")}, 16, (4, 6, 8, 8), blocks=1)
    x = torch.rand(7, 3, 16, 16)
    deep.train()(x)  # moves the averages of the norms
    deep.eval().save(tmp_path)
    for old, new in zip(deep(x).values(), judges.Judge.load(tmp_path)(x).values(), strict=True):
        assert torch.allclose(old, new, atol=0.02)  # stored in 16 bit


def test_moved_photographs_keep_their_pixels():
    x = torch.arange(2 * 3 * 64, dtype=torch.uint8).view(2, 3, 8, 8).repeat(50, 1, 1, 1)
    moved = move(x, torch.Generator().manual_seed(0), by=2)
    assert moved.shape == x.shape and moved.dtype == torch.uint8
    same = [torch.equal(a, b) for a, b in zip(moved, x, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(moved, x, strict=True)]
    assert any(same) and any(mirrored) and sum(same) + sum(mirrored) < 30
    inside = [
        set(a.flatten().tolist()) <= set(b.flatten().tolist())
        for a, b in zip(moved, x, strict=True)
    ]
    assert all(inside), "edges are repeated, nothing is invented"


def test_evaluate_prints_the_toy_s_table_for_digits(folder):
    text = runs.evaluate_run(folder, folder, n=5, candidates=2, seeds=2)
    for kind in ("Seen pairs", "Held-out pairs"):
        for count in ("one digit", "two digits"):
            assert f"{kind}, {count}, 10 captions: judged right, %" in text
    head = text.splitlines()[1]
    assert all(name in head for name in ("digit", "colour", "second digit", "exact"))
    assert "reconstructions" in text and "best of 2" in text and "exact by seed, %" in text
    numbers = json.loads((folder / "report.json").read_text())
    found = numbers["kinds"]["held_out two"]
    assert numbers["settings"] == {"candidates": 2, "seed": 0, "seeds": 2}
    assert len(found["by_seed"]["one"]) == 2 and found["one"]["exact"]["clusters"] <= 10
    assert set(found["frechet"]) == {"rebuilt", "one", "best", "training"}
    assert 0 < found["likelihood"]["bits_per_dim"] < 30
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "nearest training images" in page
    assert (folder / "judge" / "model.safetensors").is_file()


def test_the_paper_s_protocol_runs_on_digits(folder, monkeypatch):
    monkeypatch.setattr(protocol, "CAS_STEPS", 3)
    text = runs.evaluate_run(folder, folder, n=6, candidates=2, paper=True)
    assert "by the judge, over blur radius" in text and "taught by" in text
    kinds = json.loads((folder / "protocol.json").read_text())
    assert set(kinds) == {"seen one", "seen two", "held_out one", "held_out two"}
    assert set(kinds["seen two"]["cas"]["accuracy"]["samples"]) > {"digit", "colour", "exact"}


@pytest.mark.parametrize("options", [{"n": 1}, {"candidates": 0}, {"seeds": 0}])
def test_too_little_to_measure_is_refused(options, tmp_path):
    with pytest.raises(ValueError, match=f"too little .*{next(iter(options))}="):
        runs.evaluate_run(tmp_path, tmp_path, **options)


def test_a_vote_is_held_on_the_captions_of_its_own_data(folder, tmp_path):
    path = runs.vote_between(["runs/a", "runs/b"], tmp_path, n=3, seed=0)
    captions = json.loads((tmp_path / "vote_key.json").read_text())["captions"]
    assert path.name == "vote.html" and len(captions) == 3
    names = {word for name in digits.DIGITS for word in digits.SYNONYMS[name]}
    assert all(names & set(caption.replace(",", "").split()) for caption in captions)
