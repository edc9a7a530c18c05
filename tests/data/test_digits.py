"""Coloured MNIST and Fashion-MNIST: the published files, the scenes, their captions."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from minidalle.config import DataConfig
from minidalle.data import digits, shapes
from minidalle.data.digits import CLOTHES, DIGITS, Things, draw, held_out, load_digits, read_idx


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(head + array.tobytes())


def test_idx_files_are_read_and_their_size_checked(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a.gz").write_bytes(idx(array))
    assert np.array_equal(read_idx(tmp_path / "a.gz"), array)
    for damage in (idx(array)[:-20], gzip.compress(gzip.decompress(idx(array))[:-1]), b"", b"text"):
        (tmp_path / "a.gz").write_bytes(damage)
        with pytest.raises(ValueError, match="not a whole idx file"):
            read_idx(tmp_path / "a.gz")


def test_mnist_is_loaded_from_its_published_files(tmp_path, monkeypatch):
    monkeypatch.setattr("minidalle.files.places", lambda: [tmp_path])
    rng = np.random.default_rng(0)
    (tmp_path / "mnist").mkdir()
    for part, n in (("train", 30), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            file = f"mnist/{part}-{kind}-ubyte.gz"
            (tmp_path / file).write_bytes(idx(array))
            md5 = hashlib.md5((tmp_path / file).read_bytes()).hexdigest()
            monkeypatch.setitem(digits.MD5, file, md5)
    config = DataConfig("mnist", n_train=50, n_test=12, image_size=16)
    train = load_digits("train", config, seed=0)
    assert len(train) == 50 and train[0][0].shape == (3, 16, 16)
    assert len(load_digits("held_out", config, seed=0)) == 12


@pytest.fixture(scope="module")
def things():
    """Thirty full grey squares in place of digits: a scene is then known pixel by pixel."""
    images = np.zeros((30, 28, 28), np.uint8)
    images[:, 6:22, 8:20] = 255
    return Things(images, np.arange(30) % 10, DIGITS, 2)


def test_a_scene_shows_the_colours_of_its_attributes(things):
    scenes = draw(things, 40, seed=1, split="train")
    for i in range(len(scenes)):
        image, found = scenes[i][0].permute(1, 2, 0).reshape(-1, 3).tolist(), scenes.attributes(i)
        colours = [list(shapes.COLOURS[found["colour"]])]
        if found["count"] == "two":
            colours.append(list(shapes.COLOURS[found["second colour"]]))
        ground = list(shapes.BACKGROUNDS[found["background"]])
        assert all(colour in image for colour in [*colours, ground])


def test_the_first_digit_stands_on_the_left(things):
    scenes = draw(things, 60, seed=2, split="train")
    seen = 0
    for i in range(60):
        found, image = scenes.attributes(i), scenes[i][0]
        if found["count"] == "two" and found["colour"] != found["second colour"]:
            for name, half in (("colour", image[..., :16]), ("second colour", image[..., 16:])):
                colour = torch.tensor(shapes.COLOURS[found[name]])[:, None, None]
                assert (half == colour).all(0).any()
            seen += 1
    assert seen > 10


def test_captions_state_the_attributes(things):
    scenes = draw(things, 300, seed=3, split="train")
    for i in range(300):
        words = scenes.caption(i).replace(",", "").split()
        for name, value in scenes.attributes(i).items():
            if name != "count" and value != digits.NONE:
                assert set(digits.SYNONYMS.get(value, (value,))) & set(words), (name, words)
        assert ("a orange" in scenes.caption(i)) == ("a eight" in scenes.caption(i)) is False


@pytest.mark.parametrize("names", [DIGITS, CLOTHES])
def test_one_pair_in_eight_is_held_out_of_training(names):
    n = 400
    some = Things(np.zeros((30, 28, 28), np.uint8), np.arange(30) % 10, names, 2)
    apart = held_out(names)
    assert len(apart) == 10 and len({thing for thing, _ in apart}) == 10
    for split in ("train", "test", "held_out"):
        scenes = draw(some, n, seed=0, split=split)
        pairs = {(a["digit"], a["colour"]) for a in map(scenes.attributes, range(n))}
        pairs |= {(a["second digit"], a["second colour"]) for a in map(scenes.attributes, range(n))}
        pairs.discard((digits.NONE, digits.NONE))
        assert pairs == apart if split == "held_out" else not pairs & apart and len(pairs) == 70


def test_the_first_scenes_do_not_depend_on_how_many_follow(things):
    few, many = (draw(things, n, seed=4, split="train") for n in (5, 50))
    assert torch.equal(few.images, many.images[:5]) and few.captions == many.captions[:5]


def test_clothes_have_proper_articles():
    u = np.zeros(6)
    assert digits.describe(["trousers"], ["red"], "grey", u) == "red trousers on a grey background"
    u[2] = 0.9
    assert digits.describe(["ankle boot"], ["orange"], "navy", np.zeros(6)) == (
        "an orange ankle boot on a navy background"
    )
