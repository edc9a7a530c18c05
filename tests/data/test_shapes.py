"""The toy world: deterministic, anti-aliased, and honest about what it holds back."""

import numpy as np
import pytest
import torch

from minidalle.data.shapes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    describe,
    draw,
    polygon_distance,
    read_caption,
    render,
    signed_distance,
)


def test_a_seed_gives_the_same_scenes_and_more_of_them_begin_alike():
    few, many = draw(20, seed=3), draw(50, seed=3)
    assert torch.equal(few.images, many.images[:20]) and few.captions == many.captions[:20]
    assert not torch.equal(few.images, draw(20, seed=4).images)
    assert few.images.shape == (20, 3, 32, 32) and few.images.dtype == torch.uint8


@pytest.fixture(scope="module")
def scenes():
    return draw(1500)


def test_held_out_pairs_never_occur_in_training_and_alone_in_their_split(scenes):
    assert len(HELD_OUT) == len(SHAPES) * len(COLOURS) / 8
    for axis in (0, 1):  # every shape and every colour is seen with other partners
        assert len({pair[axis] for pair in HELD_OUT}) == 8
    drawn = {
        "train": scenes,
        "test": draw(500, split="test"),
        "held_out": draw(200, split="held_out"),
    }
    pairs = {s: {(a["shape"], a["colour"]) for a in d.attributes} for s, d in drawn.items()}
    assert pairs["train"].isdisjoint(HELD_OUT) and pairs["test"].isdisjoint(HELD_OUT)
    assert pairs["held_out"] == HELD_OUT
    assert len(pairs["train"]) == 64 - len(HELD_OUT)


def test_every_caption_states_the_truth_in_at_most_31_words_and_spaces(scenes):
    left_open = 0
    for caption, attributes in zip(scenes.captions, scenes.attributes, strict=True):
        stated = read_caption(caption)
        left_open += stated != attributes
        assert stated.items() <= attributes.items()
        assert set(attributes) - set(stated) <= {"position"}
        assert 2 * len(caption.replace(",", " ,").split()) - 1 <= 31
    assert 0.1 < left_open / 1500 < 0.25  # one template in six leaves the position open
    assert len(set(scenes.captions)) > 1000


def test_all_values_of_all_attributes_are_drawn(scenes):
    for name, values in ATTRIBUTES.items():
        assert {a[name] for a in scenes.attributes} == set(values)


def test_the_colour_in_the_middle_is_the_one_in_the_caption():
    attributes = [
        {"shape": s, "colour": c, "size": "large", "position": "middle", "background": "black"}
        for s in ("circle", "square", "heart")
        for c in COLOURS
    ]
    for image, a in zip(render(attributes), attributes, strict=True):
        assert tuple(image[:, 16, 16].tolist()) == COLOURS[a["colour"]]
        assert tuple(image[:, 0, 0].tolist()) == (8, 8, 8)


def test_an_edge_pixel_is_mixed_by_how_much_of_it_is_covered():
    a = dict(shape="circle", colour="yellow", size="large", position="middle", background="black")
    image = render([a])[0].float()
    cover = ((image - 8) / (torch.tensor(COLOURS["yellow"])[:, None, None] - 8)).mean(0)
    # Count a fine grid of points inside the same circle, pixel by pixel.
    at = (np.arange(32 * 20) + 0.5) / 20
    inside = np.hypot(at[:, None] - 16, at[None, :] - 16) < 11.4 * 0.97
    want = torch.from_numpy(inside.reshape(32, 20, 32, 20).mean((1, 3))).float()
    assert (cover - want).abs().max() < 0.12
    assert ((cover > 0.05) & (cover < 0.95)).any()


def test_polygon_distance_of_a_square_is_known():
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    points = np.array([[0, 0], [0.5, 0], [2, 0], [2, 2], [0, -3], [-1.5, 0.3]], float)
    want = [-1, -0.5, 1, np.sqrt(2), 2, 0.5]
    np.testing.assert_allclose(polygon_distance(points, square), want, atol=1e-12)


def test_a_heart_has_its_tip_its_notch_and_two_lobes():
    outline = np.array([[0, 14.5], [0, -7.5], [16, -6.5], [-16, -6.5]]) / 15.5
    np.testing.assert_allclose(signed_distance("heart", outline), 0, atol=0.01)
    inside = signed_distance("heart", np.array([[0.5, -0.7], [-0.5, -0.7], [0, 0.8], [0, -0.7]]))
    assert (inside < 0).tolist() == [True, True, True, False]


def test_sizes_vary_by_eight_per_cent_each_way():
    scenes, radii = draw(1500), []
    for image, a in zip(scenes.images.double(), scenes.attributes, strict=True):
        if a["shape"] == "circle" and a["size"] == "large":
            ink, ground = (torch.tensor(t).double()[:, None, None] for t in
                           (COLOURS[a["colour"]], BACKGROUNDS[a["background"]]))  # fmt: skip
            area = ((image - ground).abs().sum(0) / (ink - ground).abs().sum(0)).sum()
            radii.append((area / np.pi).sqrt().item() / 0.97 / SIZES["large"])
    assert 0.9 < min(radii) < 0.94 and 1.06 < max(radii) < 1.1, (min(radii), max(radii))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_lies_inside_the_unit_disc_more_or_less(shape):
    angle = np.linspace(0, 2 * np.pi, 100)
    ring = 1.4 * np.stack([np.cos(angle), np.sin(angle)], 1)
    assert (signed_distance(shape, ring) > 0).all()
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41)), -1).reshape(-1, 2)
    assert 0.15 < (signed_distance(shape, grid) < 0).mean() < 0.75


def test_an_orange_thing_has_its_article():
    a = {"shape": "star", "colour": "orange", "size": "small", "position": "middle",
         "background": "white"}  # fmt: skip
    template = "a {colour} {shape} in the {position}, {size}, on {background}"
    assert describe(a, template=template) == "an orange star in the middle, small, on white"
