"""The paper's crops, and area resampling against loops and torch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.data.cropping import area_resize, centre_crop, crop_stage_one, crop_stage_two


def covered(image, height, width):
    """Area resampling by its definition: the overlap of every old pixel with every new one."""
    _, h, w = image.shape
    out = torch.zeros(image.shape[0], height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            top, bottom = y * h / height, (y + 1) * h / height
            left, right = x * w / width, (x + 1) * w / width
            for j in range(math.floor(top), min(h, math.ceil(bottom))):
                for i in range(math.floor(left), min(w, math.ceil(right))):
                    tall = min(bottom, j + 1) - max(top, j)
                    wide = min(right, i + 1) - max(left, i)
                    out[:, y, x] += image[:, j, i].double() * tall * wide
    return out * height * width / (h * w)


@settings(max_examples=15, deadline=None)
@given(*[st.integers(1, 6)] * 4, st.integers(0, 99))
def test_area_resize_is_the_mean_of_what_each_pixel_covers(h, w, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (2, h, w), generator=generator).byte()
    difference = area_resize(image, height, width).double() - covered(image, height, width)
    assert difference.abs().max() <= 0.5 + 1e-4


def test_area_resize_by_a_whole_factor_is_average_pooling():
    image = torch.randint(0, 256, (4, 3, 24, 36)).byte()
    want = torch.nn.functional.avg_pool2d(image.double(), (3, 4))
    assert (area_resize(image, 8, 9).double() - want).abs().max() <= 0.5 + 1e-4


def position_image(height, width):
    """Channel 0 holds each pixel's row, channel 1 its column."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y, x, y * 0]).byte()


def test_centre_crop_takes_the_middle_square():
    cut = centre_crop(position_image(10, 20), 10)
    assert cut[0, :, 0].tolist() == list(range(10))
    assert cut[1, 0].tolist() == list(range(5, 15))


@pytest.mark.parametrize("crop", [crop_stage_one, crop_stage_two])
@pytest.mark.parametrize("height, width", [(40, 90), (90, 40), (32, 32), (7, 5), (33, 300)])
def test_crops_have_the_wanted_size_and_follow_their_generator(crop, height, width):
    image = torch.randint(0, 256, (3, height, width)).byte()
    cuts = [crop(image, 32, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1, 2, 3)]
    assert all(cut.shape == (3, 32, 32) and cut.dtype == torch.uint8 for cut in cuts)
    assert torch.equal(cuts[0], cuts[1])
    if height > 32:
        assert any(not torch.equal(cuts[0], cut) for cut in cuts[2:])


def test_stage_one_flips_half_of_the_time_and_stage_two_never():
    image = position_image(64, 64)
    flipped = {crop_stage_one: 0, crop_stage_two: 0}
    for seed in range(100):
        for crop in flipped:
            cut = crop(image, 32, torch.Generator().manual_seed(seed))
            flipped[crop] += bool(cut[1, 0, 0] > cut[1, 0, -1])
    assert 35 <= flipped[crop_stage_one] <= 65
    assert flipped[crop_stage_two] == 0


def test_stage_one_sees_the_whole_side_and_stage_two_only_its_middle():
    image = position_image(32, 232)  # 200 pixels of slack, sideways
    lefts = {crop_stage_one: [], crop_stage_two: []}
    for seed in range(200):
        for crop, found in lefts.items():
            cut = crop(image, 32, torch.Generator().manual_seed(seed))
            found.append(int(cut[1, 0].min()))
    assert min(lefts[crop_stage_one]) < 15 and max(lefts[crop_stage_one]) > 185
    assert 75 <= min(lefts[crop_stage_two]) < 80 and 120 < max(lefts[crop_stage_two]) <= 125


def test_the_scale_of_each_stage_is_the_papers():
    """At size 32 the listings shrink to 36 … 48 and 32 … 36: a new pixel spans 128 / T old ones."""
    image = position_image(128, 128)
    spans = {crop_stage_one: [], crop_stage_two: []}
    for seed in range(60):
        for crop, found in spans.items():
            cut = crop(image, 32, torch.Generator().manual_seed(seed))[0].float()
            found.append(float(cut[31, 0] - cut[0, 0]))  # old pixels between the outer rows
    for crop, (low, high) in {crop_stage_one: (36, 48), crop_stage_two: (32, 36)}.items():
        assert min(spans[crop]) == pytest.approx(31 * 128 / high, abs=3)
        assert max(spans[crop]) == pytest.approx(31 * 128 / low, abs=3)
