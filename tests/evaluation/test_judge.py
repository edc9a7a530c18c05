"""The judge against true scenes, against the nearest drawing, and against its own leniency."""

import itertools
from pathlib import Path

import pytest
import torch
from helpers import matcher

from minidalle.data import shapes
from minidalle.evaluation.judge import Judge, blur3, roughen, train_judge, true_scenes
from minidalle.evaluation.metrics import accuracy

SHIPPED = Path(__file__).parents[2] / "data" / "checkpoints" / "toy" / "judge"
UNSEEN = 987_654


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(SHIPPED)


def test_the_shipped_judge_reads_unseen_scenes(judge):
    scenes = true_scenes(1000, UNSEEN)
    marks = accuracy(judge.read(scenes.images / 255), scenes.attributes)
    assert set(marks) == {*shapes.ATTRIBUTES, "exact"}
    for name, mark in marks.items():
        assert mark["share"] >= 0.995, name


@pytest.mark.slow  # as test_matcher
def test_the_judge_agrees_with_the_nearest_rendering(judge):
    """A second opinion with nothing learnt, on scenes that look like reconstructions."""
    scenes = true_scenes(100, UNSEEN + 1)
    x = roughen(scenes.images / 255, torch.Generator().manual_seed(0))
    nearest, read = matcher.read(x), judge.read(x)
    agree = [all(read[k][i] == nearest[k][i] for k in read) for i in range(len(x))]
    assert sum(agree) / len(agree) >= 0.98


def test_a_colour_half_way_is_read_as_the_nearer_one(judge):
    """Not lenient: a tenth past the middle the judge has changed its mind."""
    scene = {"size": "large", "position": "middle", "background": "white"}
    hits = []
    for shape in shapes.SHAPES:
        ends = [{"shape": shape, "colour": c, **scene} for c in ("yellow", "green", "blue", "red")]
        x = shapes.render(ends) / 255
        for a, b in itertools.combinations(range(4), 2):
            for share, want in ((0.15, a), (0.85, b)):
                mix = x[a] + share * (x[b] - x[a])
                hits.append(judge.read(mix[None])["colour"][0] == ends[want]["colour"])
    assert sum(hits) / len(hits) >= 0.95


def test_an_erased_object_is_not_read_right(judge):
    """Not lenient: what has been wiped away is guessed no better than blindly, by and large."""
    scenes = true_scenes(400, UNSEEN + 2)
    grounds = torch.tensor([shapes.BACKGROUNDS[a["background"]] for a in scenes.attributes])
    empty = (grounds[:, :, None, None] / 255).expand(-1, 3, 32, 32)
    marks = accuracy(judge.read(empty), scenes.attributes)
    assert marks["exact"]["share"] <= 0.02 and marks["shape"]["share"] <= 0.25


def test_training_learns_and_repeats_itself():
    scenes = true_scenes(200, 0)
    options = dict(steps=80, batch_size=8, lr=3e-3)
    losses: list[float] = []
    one = train_judge(
        scenes.images, scenes.attributes, progress=lambda _, loss: losses.append(loss), **options
    )
    two = train_judge(scenes.images, scenes.attributes, **options)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_labels_that_are_spread_over_all_answers_teach_nothing():
    scenes = true_scenes(60, 0)
    options = dict(steps=2, batch_size=8)
    for smooth in (1.0, 0.5):
        one, two = (
            train_judge(scenes.images, labels, smooth=smooth, **options)
            for labels in (scenes.attributes, scenes.attributes[::-1])
        )
        assert torch.equal(one.head.weight, two.head.weight) == (smooth == 1)


def test_saved_and_loaded_it_reads_the_same(judge, tmp_path):
    judge.save(tmp_path / "judge")
    again = Judge.load(tmp_path / "judge")
    x = true_scenes(50, UNSEEN + 3).images
    assert again.read(x) == judge.read(x / 255)
    assert (tmp_path / "judge" / "model.safetensors").stat().st_size <= 2**20


def test_every_pair_is_equally_likely_in_its_scenes():
    scenes = true_scenes(640, 1)
    held_out = [(a["shape"], a["colour"]) in shapes.HELD_OUT for a in scenes.attributes]
    assert sum(held_out) == 80 and len(scenes.images) == len(scenes.captions) == 640


def test_rough_images_stay_images():
    x = true_scenes(50, 2).images / 255
    rough = roughen(x, torch.Generator().manual_seed(0))
    assert rough.min() >= 0 and rough.max() <= 1
    error = (rough - x).square().mean((1, 2, 3)).sqrt()
    assert error.min() > 0.005 and error.max() < 0.15
    assert torch.equal(rough, roughen(x, torch.Generator().manual_seed(0)))


def test_three_in_four_images_are_blurred_for_training(monkeypatch):
    point = torch.zeros(1, 3, 5, 5)
    point[:, :, 2, 2] = 16
    window = torch.tensor([1.0, 2, 1])
    assert torch.equal(blur3(point)[0, 0, 1:4, 1:4], torch.outer(window, window))
    monkeypatch.setattr("minidalle.evaluation.judge.blur3", torch.zeros_like)  # blurred is black
    rough = roughen(torch.ones(400, 3, 32, 32), torch.Generator().manual_seed(0))
    assert 0.6 < (rough.mean((1, 2, 3)) < 0.9).float().mean() < 0.75


def test_mistakes_are_named(judge, tmp_path):
    with pytest.raises(ValueError, match=r"torch.uint8 \(1, 3, 32, 32\)"):
        judge.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(1, 3, 64, 64\)"):
        judge.features(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"model.safetensors and config.json missing"):
        Judge.load(tmp_path)
    with pytest.raises(ValueError, match="image_size=20"):
        Judge({"a": ("x", "y")}, 20)
