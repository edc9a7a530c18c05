"""The nearest rendering: a judge that learns nothing."""

import numpy as np
import pytest
from helpers import matcher

from minidalle.data import shapes
from minidalle.evaluation.judge import true_scenes

pytestmark = pytest.mark.slow  # 3 seconds to draw every rendering


@pytest.fixture(scope="module")
def scenes():
    return true_scenes(200, 11)


@pytest.fixture(scope="module")
def found(scenes):
    return matcher.read(scenes.images)


def test_a_mask_is_the_share_of_pixels_that_the_object_covers():
    cover, names = matcher.masks()
    for index in (0, 2000, len(names) - 1):
        name, size = names[index], shapes.SIZES[names[index]["size"]]
        inks = (cover[index] > 0.5).sum().item()
        assert 0.2 * size**2 < inks < 4 * size**2, name
    assert cover.min() >= 0 and cover.max() <= 1


def test_the_nearest_rendering_is_right_on_true_scenes(scenes, found):
    right = [all(found[k][i] == a[k] for k in a) for i, a in enumerate(scenes.attributes)]
    assert np.mean(right) >= 0.98
