"""Look-alike batches: families that differ in one attribute, and what else a caption fits."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from minidalle.clip import contrastive_loss
from minidalle.config import get_config
from minidalle.data import scenes, shapes
from minidalle.data.captioned import InMemory
from minidalle.data.lookalikes import Lookalikes, batches

SCENES = shapes.draw(600, 0)
STATED = [shapes.read_caption(c) for c in SCENES.captions]


def test_neighbours_in_a_batch_differ_in_one_attribute():
    families = Lookalikes(SCENES.attributes, [[s] for s in STATED])
    rows = families.batch(64, np.random.default_rng(0))
    assert rows.shape == (64,)
    pairs = pairwise(rows)
    differ = [sum(SCENES.attributes[i][k] != SCENES.attributes[j][k] for k in shapes.ATTRIBUTES)
              for i, j in pairs]  # fmt: skip
    assert np.mean(np.array(differ) <= 1) > 0.2
    assert np.array_equal(rows, families.batch(64, np.random.default_rng(0)))


def test_families_of_digits_are_half_of_one_digit_and_differ_in_one_attribute():
    rng = np.random.default_rng(1)
    drawn = []
    for i in range(900):
        one, two = rng.integers(3, size=2)
        second = {"second digit": str(two)} if i % 9 else {"second digit": "none"}
        drawn.append({"count": "two" if i % 9 else "one", "digit": str(one), **second})
    families = Lookalikes(drawn, [[s] for s in drawn])
    rows = families.batch(300, rng)
    ones = np.mean([drawn[i]["count"] == "one" for i in rows])
    assert 0.3 < ones < 0.7, "a ninth of the scenes has one digit"
    differ = [sum(drawn[i][k] != drawn[j][k] for k in drawn[0]) for i, j in pairwise(rows)]
    assert np.mean(np.array(differ) <= 1) > 0.4


def test_images_that_nobody_described_have_no_lookalikes():
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    bare = InMemory(images, ["a"] * 4, None, "train")
    with pytest.raises(ValueError, match=r"train_clip\.lookalikes=0 train_clip.rebuilt=0"):
        batches(bare, get_config("mnist", ["data.name=emoji"]), None, None)


def test_a_caption_fits_the_images_that_it_is_true_of():
    families = Lookalikes(SCENES.attributes, [[s] for s in STATED])
    rows = np.arange(50)
    fits = families.fits(rows)
    for i in range(50):
        for j in range(50):
            true = all(SCENES.attributes[j][k] == v for k, v in STATED[i].items())
            assert fits[i, j] == true
    assert fits.diagonal().all()


def test_a_caption_of_two_objects_fits_what_an_exact_reader_says():
    drawn = scenes.draw(400, 0)
    labels = [scenes.labels(s) for s in drawn.scenes]
    families = Lookalikes(labels, [scenes.stated(c) for c in drawn.captions])
    rows = families.batch(80, np.random.default_rng(0))
    fits = families.fits(rows)
    for i, row in enumerate(rows):
        wanted = [scenes.read_caption(drawn.captions[row])] * len(rows)
        found = {name: [labels[j][name] for j in rows] for name in labels[0]}
        assert fits[i].int().tolist() == scenes.marks(found, wanted)["exact"]
    assert fits.sum() > 100  # some captions leave something open


def test_a_family_of_exchanges_holds_the_same_words_bound_otherwise():
    a, b = ("star", "red"), ("circle", "blue")
    crossed = (("circle", "red"), ("star", "blue"))
    drawn = [scenes.Scene("beside", pair, "white") for pair in ((a, b), (b, a), crossed)]
    labels, draw = [scenes.labels(s) for s in drawn], np.random.default_rng(0)
    families = Lookalikes(labels, [scenes.stated(scenes.describe(s, draw)) for s in drawn])
    families.weights = np.eye(len(families.weights))[-1]  # exchanges alone
    assert all(set(families.batch(3, draw)) == {0, 1, 2} for _ in range(20))


def test_pairs_that_fit_are_left_out_and_images_without_a_caption_are_wrong_answers():
    unit = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.manual_seed(0)), dim=1)
    image, text, scale = unit, unit[:3].flip(1), torch.tensor(1.0)
    fits = torch.eye(3, 5, dtype=torch.bool)
    fits[0, 2] = fits[1, 4] = True
    loss, *_ = contrastive_loss(image, text, scale, fits=fits)
    factor, want = scale.exp(), 0.0
    for i in range(3):
        others = [j for j in range(5) if j == i or not fits[i, j]]
        row = factor * text[i] @ image[others].T
        want += torch.logsumexp(row, 0) - factor * text[i] @ image[i]
        others = [j for j in range(3) if j == i or not fits[j, i]]
        row = factor * image[i] @ text[others].T
        want += torch.logsumexp(row, 0) - factor * text[i] @ image[i]
    torch.testing.assert_close(loss, want / 6)
