"""Scenes of two objects: what training never holds, and what a caption asks for."""

from collections import Counter

import numpy as np
import pytest
import torch

from minidalle.data import scenes
from minidalle.data.scenes import LAYOUTS, OBJECTS, RELATIONS, Scene, Wanted


def mark(wanted: Wanted, scene: Scene) -> dict[str, int]:
    """What scenes.marks says of one image that shows a scene, without what was not asked for."""
    found = scenes.marks({k: [v] for k, v in scenes.labels(scene).items()}, [wanted])
    return {name: value for name, (value,) in found.items() if value is not None}


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_every_caption_is_true_of_its_scene(split):
    drawn = scenes.draw(150, 0, split)
    for caption, scene in zip(drawn.captions, drawn.scenes, strict=True):
        marks = mark(scenes.read_caption(caption), scene)
        assert all(marks.values()), caption
        stated = scenes.stated(caption)
        assert any(part.items() <= scenes.labels(scene).items() for part in stated), caption


def test_training_holds_no_held_out_pair_and_no_held_out_binding():
    for scene in scenes.draw(500, 0, "train").scenes:
        assert scenes.split_of(scene) == "seen"
    for split in ("held_out", "bindings"):
        assert {scenes.split_of(s) for s in scenes.draw(100, 0, split).scenes} == {split}


def test_the_swap_of_a_held_out_binding_is_seen():
    held_out = 0
    for layout in RELATIONS:
        for a in OBJECTS:
            for b in OBJECTS:
                if scenes.binding_held_out(layout, a, b):
                    held_out += 1
                    assert not scenes.binding_held_out(layout, b, a)
    assert 0.05 < held_out / (2 * 36 * 35) < 0.08


def test_a_swapped_scene_is_not_what_the_caption_asks_for():
    a, b = ("star", "red"), ("circle", "blue")
    wanted = Wanted("beside", (a, b), "white")
    for text in (
        "a red star left of a blue circle on white", "a blue circle right of a red star on white",
        "on the left a red star, on the right a blue circle, white background",
        "on white, a blue circle to the right of a red star",
        "a red star on the left and a blue circle on the right on white",
    ):  # fmt: skip
        assert scenes.read_caption(text) == wanted, text
    right, swapped = (Scene("beside", pair, "white") for pair in ((a, b), (b, a)))
    pair = ("two objects", "colour attribution", "position", "exact")
    crossed = Scene("beside", (("star", "blue"), ("circle", "red")), "white")
    alone = Scene("one", (a,), "white")
    assert mark(wanted, right) == dict(zip(pair, (1, 1, 1, 1), strict=True))
    assert mark(wanted, swapped) == dict(zip(pair, (1, 1, 0, 0), strict=True))
    assert mark(wanted, crossed) == dict(zip(pair, (1, 0, 0, 0), strict=True))
    assert mark(wanted, alone) == dict(zip(pair, (0, 0, 0, 0), strict=True))
    assert mark(wanted, Scene("beside", (a, b), "black")) == dict(
        zip(pair, (1, 1, 1, 0), strict=True)
    )


def test_one_object_and_several_of_the_same_are_asked_for_in_their_own_rows():
    one = scenes.read_caption("a red star on white")
    assert mark(one, Scene("one", (("star", "blue"),), "white")) == {
        "single object": 1, "colours": 0, "exact": 0,
    }  # fmt: skip
    three = scenes.read_caption("three red stars")
    for layout, right in (("two", 0), ("three", 1)):
        scene = Scene(layout, (("star", "red"),), "grey")
        assert mark(three, scene) == {"counting": right, "exact": right}
    assert mark(three, Scene("three", (("star", "blue"),), "grey")) == {"counting": 1, "exact": 0}


def test_what_a_caption_leaves_open_is_not_asked():
    wanted = scenes.read_caption("three stars")
    assert wanted == Wanted("three", (("star", None),), None)
    assert scenes.read_caption("a pair of red crosses on grey").layout == "two"
    open_relation = scenes.read_caption("a heart and a cross on a black background")
    assert open_relation.layout is None
    for objects in ((("heart", "red"), ("cross", "blue")), (("cross", "red"), ("heart", "blue"))):
        scene = Scene("stacked", objects, "black")
        assert mark(open_relation, scene) == {"two objects": 1, "exact": 1}
    with pytest.raises(ValueError, match="one or two objects"):
        scenes.read_caption("a plain ground")


def test_every_layout_comes_and_the_first_scenes_do_not_depend_on_how_many():
    many, few = scenes.draw(200, 3), scenes.draw(20, 3)
    assert set(Counter(s.layout for s in many.scenes)) == set(LAYOUTS)
    assert many.captions[:20] == few.captions and torch.equal(many.images[:20], few.images)
    assert many.images.shape == (200, 3, scenes.SIDE, scenes.SIDE)
    assert many.images.dtype == torch.uint8


def test_objects_stay_apart_and_inside():
    rngs = [np.random.default_rng(i) for i in range(60)]
    pairs = [Scene(k, (("circle", "red"), ("circle", "blue")), "black") for k in RELATIONS] * 30
    images = scenes.render(pairs, rngs).int()
    red, blue = images[:, 0] > 150, images[:, 2] > 180
    assert not (red & blue).any() and red.any((1, 2)).all() and blue.any((1, 2)).all()
    same = scenes.render([Scene("three", (("circle", "red"),), "black")], rngs)[0, 0] > 100
    assert same.sum() > 2.4 * (np.pi * (0.17 * scenes.SIDE) ** 2) * 0.9
