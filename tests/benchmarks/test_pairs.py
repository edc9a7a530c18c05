"""The paired world: what its images and captions hold, and which pairs training never shows."""

import importlib.util
from pathlib import Path

import pytest
import torch

from minidalle.data import shapes

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "pairs.py"
SPEC = importlib.util.spec_from_file_location("pairs", PATH)
pairs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pairs)


@pytest.mark.parametrize("split, unseen", [("train", False), ("test", False), ("held_out", True)])
def test_the_lower_half_is_told_but_for_its_shape(split, unseen):
    images, captions, truth = pairs.draw(40, 0, split)
    assert torch.equal(images[:7], pairs.draw(7, 0, split)[0])
    for image, caption, wanted in zip(images, captions, truth, strict=True):
        assert ((wanted["shape"], wanted["colour"]) in shapes.HELD_OUT) == unseen
        assert shapes.read_caption(caption) == {"colour": wanted["colour"]}
        ink = torch.tensor(shapes.COLOURS[wanted["colour"]]).view(3, 1, 1)
        assert (image[:, 16:] == ink).all(0).any()


def test_the_object_of_a_half_is_cut_out_in_the_middle():
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, 20:28, 4:12] = images[1, :, 2:10, 18:26] = 1
    for top, row in ((16, 0), (0, 1)):
        cut = pairs.lower(images, top)[row, 0]
        assert cut[15:17, 15:17].min() > 0.9 and cut[:, 0].max() < 0.1
        assert pairs.lower(images, top)[1 - row].max() < 0.1
