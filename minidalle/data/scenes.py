"""A drawn world of objects and how they stand to each other: does a model bind words to things?

N scenes, P pixels. A scene holds one object, two or three of the same, or two different ones side
by side or one above the other. Some (shape, colour) pairs never appear in training, and some
bindings: the training scenes hold "a red star left of a blue ring" never, its swap often.
The kinds of question are those of GenEval (Ghosh et al. 2023, arXiv:2310.11513).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from minidalle.data import shapes

SIDE = shapes.SIDE  # pixels; places and radii below are shares of it
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = {c: shapes.COLOURS[c] for c in ("red", "yellow", "green", "cyan", "blue", "pink")}
BACKGROUNDS = {b: shapes.BACKGROUNDS[b] for b in ("white", "black", "grey")}
OBJECTS = tuple((s, c) for s in SHAPES for c in COLOURS)
# Every colour and every shape lacks exactly one partner: 6 of the 36 pairs.
HELD_OUT_PAIRS = frozenset((s, tuple(COLOURS)[(i + 2) % 6]) for i, s in enumerate(SHAPES))
SPLITS = ("train", "test", "held_out", "bindings")

VERSION = 1  # of this world: a run of another one is not gone on with
RADIUS = 0.19  # of an object, as a share of SIDE
SIZE_JITTER = 0.08  # relative
JITTER = 0.045  # of a centre, each way, as a share of SIDE
LAYOUTS = {  # centres (x, y) as shares of SIDE, y grows downwards
    "one": ((0.5, 0.5),),
    "two": ((0.27, 0.5), (0.73, 0.5)),
    "three": ((0.27, 0.28), (0.73, 0.28), (0.5, 0.72)),
    "beside": ((0.26, 0.5), (0.74, 0.5)),  # left, right
    "stacked": ((0.5, 0.26), (0.5, 0.74)),  # above, below
}
SHARES = {"one": 0.2, "two": 0.1, "three": 0.1, "beside": 0.3, "stacked": 0.3}
WANDER = 0.2  # how far a single object may stand from the middle, each way

NUMBERS = {"one": ("a", "one"), "two": ("two", "a pair of"), "three": ("three",)}
RELATIONS = {  # layout -> words of the first object's place and of the second's
    "beside": (("left of", "to the left of"), ("right of", "to the right of")),
    "stacked": (("above", "over"), ("below", "under")),
}
PLACES = {"beside": ("on the left", "on the right"), "stacked": ("at the top", "at the bottom")}
PAIR_FORMS = (  # {a} and {b}: the objects, in either order; {word}: how a stands to b
    "{a} {word} {b} on {ground}",
    "on {ground}, {a} {word} {b}",
    "{a} {a_place} and {b} {b_place} on {ground}",
    "{a_place} {a}, {b_place} {b}, {ground} background",
    "{a} {word} {b}",  # ground left open
    "{a} and {b} on a {ground} background",  # relation left open
)
SAME_FORMS = (  # {n}: how many
    "{n} {a} on {ground}",
    "on {ground}, {n} {a}",
    "{n} {a} on a {ground} background",
    "{n} {a}, {ground} background",
    "{n} {a}",  # ground left open
    "a picture of {n} {a} on {ground}",
)
OPEN_COLOUR = 0.15  # share of captions that leave the colours open


@dataclass(frozen=True)
class Scene:
    """layout: a key of LAYOUTS. objects: (shape, colour) of the first (left, above) and the second.

    Scenes of the same objects, layouts 'one', 'two' and 'three', hold one entry.
    """

    layout: str
    objects: tuple[tuple[str, str], ...]
    background: str


@dataclass(frozen=True)
class Wanted:
    """What a caption asks for; None where it leaves it open.

    objects: (shape, colour or None), as many as are named. layout None: two objects, anyhow.
    """

    layout: str | None
    objects: tuple[tuple[str, str | None], ...]
    background: str | None


@dataclass(frozen=True)
class Scenes:
    """images uint8 (N, 3, SIDE, SIDE), a caption and a scene for each."""

    images: Tensor
    captions: list[str]
    scenes: list[Scene]

    @property
    def attributes(self) -> list[dict[str, str]]:
        """The scenes as the answers of a judge, see `labels`."""
        return [labels(scene) for scene in self.scenes]


def binding_held_out(layout: str, first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Say whether two objects never stand in this order in training; their swap then does.

    One in eight pairs of objects has a held-out order, half of them the one, half the other.
    """
    i, j = OBJECTS.index(first), OBJECTS.index(second)
    low, high = min(i, j), max(i, j)
    slot = (7 * low + 5 * high + 3 * (layout == "stacked")) % 16
    return i != j and slot == (0 if i < j else 1)


@lru_cache(maxsize=4)  # every stage of a run asks for the same scenes
def draw(n: int, seed: int = 0, split: str = "train") -> Scenes:
    """Draw n scenes. The first k of n are the same for every n >= k. Do not write to them.

    split: 'train' and 'test' hold seen pairs and seen bindings, 'held_out' at least one held-out
    (shape, colour) pair in each scene, 'bindings' only held-out bindings of seen pairs.
    Raises ValueError for another split or n < 1.
    """
    shapes.check_draw(n, split, SPLITS)
    chosen, captions = [], []
    rngs = [np.random.default_rng([seed, SPLITS.index(split), i]) for i in range(n)]
    for rng in rngs:
        chosen.append(draw_scene(rng, split))
        captions.append(describe(chosen[-1], rng))
    return Scenes(render(chosen, rngs), captions, chosen)


def draw_scene(rng: np.random.Generator, split: str = "train") -> Scene:
    """Draw what a scene holds; unsuitable draws are thrown back, so all suitable are likely."""
    layouts = list(SHARES)
    while True:
        layout = layouts[rng.choice(len(layouts), p=list(SHARES.values()))]
        n_kinds = 2 if layout in RELATIONS else 1
        kinds = rng.choice(len(OBJECTS), n_kinds, replace=False)
        objects = tuple(OBJECTS[k] for k in kinds)
        background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
        scene = Scene(layout, objects, background)
        if split_of(scene) == ("seen" if split in ("train", "test") else split):
            return scene


def split_of(scene: Scene) -> str:
    """Return 'held_out' or 'bindings' for a scene that training never holds, else 'seen'."""
    if HELD_OUT_PAIRS & set(scene.objects):
        return "held_out"
    if scene.layout in RELATIONS and binding_held_out(scene.layout, *scene.objects):
        return "bindings"
    return "seen"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Put a scene into words: one of six forms, some of which leave something open."""
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731
    names = [s if rng.random() < OPEN_COLOUR else f"{c} {s}" for s, c in scene.objects]
    if scene.layout in RELATIONS:
        order = int(rng.integers(2))  # which of the two is named first
        words = dict(a=f"a {names[order]}", b=f"a {names[1 - order]}")
        words["word"] = pick(RELATIONS[scene.layout][order])
        places = PLACES[scene.layout]
        words |= dict(a_place=places[order], b_place=places[1 - order])
        return pick(PAIR_FORMS).format(ground=scene.background, **words)
    plural = names[0] + ("" if scene.layout == "one" else "es" if names[0][-1] == "s" else "s")
    words = dict(n=pick(NUMBERS[scene.layout]), a=plural, ground=scene.background)
    return pick(SAME_FORMS).format(**words)


_OBJECT = re.compile(rf"(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})(?:es|s)?\b")


def read_caption(caption: str) -> Wanted:
    """Return what a caption of this world asks for, by searching its words.

    Raises ValueError where it names no object, or more than two.
    """
    text = " ".join(caption.lower().replace(",", " ").split())
    named = list(_OBJECT.finditer(text))
    objects = tuple((m[2], m[1]) for m in named)
    if len(objects) not in (1, 2):
        raise ValueError(f"a caption names one or two objects, got {len(objects)} in {caption!r}")
    grounds = [b for b in BACKGROUNDS if re.search(rf"\b{b}\b", text)]
    background = grounds[0] if grounds else None
    if len(objects) == 1:
        counts = {"two": ("two", "pair"), "three": ("three",)}
        found = [k for k, words in counts.items() if set(words) & set(text.split())]
        return Wanted(found[0] if found else "one", objects, background)
    for layout in RELATIONS:
        for order in (0, 1):
            # Where the first named stands: "a left of b", or "a on the left", first of two places.
            between = text[named[0].end() : named[1].start()]
            said = any(f" {word} a" in between for word in RELATIONS[layout][order])
            own, other = PLACES[layout][order], PLACES[layout][1 - order]
            said |= own in text and other in text and text.index(own) < text.index(other)
            if said:
                return Wanted(layout, objects if order == 0 else objects[::-1], background)
    return Wanted(None, objects, background)


def labels(scene: Scene) -> dict[str, str]:
    """Return a scene as the answers of a judge: one word for each of six questions."""
    objects = [*scene.objects, ("none", "none")][:2]
    return {"layout": scene.layout, **_names(objects), "background": scene.background}


def stated(caption: str) -> list[dict[str, str]]:
    """Return what a caption states, as a part of `labels`, once for each way to read it.

    Two objects without a relation may stand in either order, side by side or stacked.
    Raises ValueError as `read_caption`.
    """
    wanted = read_caption(caption)
    ground = {"background": wanted.background} if wanted.background else {}
    if len(wanted.objects) == 1:
        none = {"other shape": "none", "other colour": "none"}
        return [_names(wanted.objects) | none | {"layout": wanted.layout} | ground]
    layouts = (wanted.layout,) if wanted.layout else tuple(RELATIONS)
    orders = (wanted.objects,) if wanted.layout else (wanted.objects, wanted.objects[::-1])
    return [_names(some) | {"layout": layout} | ground for layout in layouts for some in orders]


def _names(objects: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    keys, values = ("shape", "colour", "other shape", "other colour"), chain(*objects)
    return {key: value for key, value in zip(keys, values, strict=False) if value}


ROWS = ("single object", "two objects", "counting", "colours", "position", "colour attribution")


def marks(
    found: Mapping[str, Sequence[str]], wanted: Sequence[Wanted]
) -> dict[str, list[int | None]]:
    """Mark images by GenEval's six rows: 1 right, 0 wrong, None where a caption does not ask.

    found: a judge's answers, as `labels`, one an image; wanted: what each caption asks for.
    One object: it is there (single object) and has its colour (colours). Two or three of the same:
    that many (counting). Two different ones: both are there (two objects), each has its colour
    (colour attribution), and they stand as asked for, colours included (position). "exact" is
    added: 1 where all that is stated is right, the background too.
    """
    rows: dict[str, list[int | None]] = {name: [] for name in (*ROWS, "exact")}
    answers = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    for answer, want in zip(answers, wanted, strict=True):
        right = _right(want, answer)
        for name in rows:
            rows[name].append(None if name not in right else int(right[name]))
    return rows


def _right(wanted: Wanted, found: dict[str, str]) -> dict[str, bool]:
    seen = [(found["shape"], found["colour"]), (found["other shape"], found["other colour"])]
    ground = wanted.background in (None, found["background"])
    if len(wanted.objects) == 1:
        (shape, colour), layout = wanted.objects[0], found["layout"]
        is_there = shape == seen[0][0] and layout not in RELATIONS
        painted, counted = colour in (None, seen[0][1]), layout == wanted.layout
        right = {"exact": is_there and painted and counted and ground}
        if wanted.layout != "one":
            return right | {"counting": is_there and counted}
        right["single object"] = is_there
        return right | ({"colours": is_there and painted} if colour else {})
    # Two objects; without a relation they may stand either way round.
    either = [seen, seen[::-1]] if found["layout"] in RELATIONS else []
    shapes_only = [(shape, None) for shape, _ in wanted.objects]
    placed = any(_fits(wanted.objects, order) for order in either)
    right = {"two objects": any(_fits(shapes_only, order) for order in either)}
    if all(colour for _, colour in wanted.objects):
        right["colour attribution"] = placed
    if wanted.layout:
        placed = found["layout"] == wanted.layout and _fits(wanted.objects, seen)
        right["position"] = placed
    return right | {"exact": placed and ground}


def _fits(objects: Sequence[tuple], seen: Sequence[tuple[str, str]]) -> bool:
    pairs = zip(objects, seen, strict=True)
    return all(w[0] == s[0] and w[1] in (None, s[1]) for w, s in pairs)


def render(scenes: list[Scene], rngs: list[np.random.Generator] | None = None) -> Tensor:
    """Draw scenes -> uint8 (N, 3, SIDE, SIDE).

    rngs, one a scene, move the objects and change their size; without them all stand still.
    """
    images = np.empty((len(scenes), 3, SIDE, SIDE), np.uint8)
    for i, scene in enumerate(scenes):
        image = np.tile(np.array(BACKGROUNDS[scene.background], float), (SIDE**2, 1))  # (P, 3)
        centres = LAYOUTS[scene.layout]
        objects = scene.objects * (len(centres) if len(scene.objects) == 1 else 1)
        for (shape, colour), centre in zip(objects, centres, strict=True):
            reach = WANDER if scene.layout == "one" else JITTER
            shift, scale = (0.0, 0.0), 1.0
            if rngs:
                shift = rngs[i].uniform(-reach, reach, 2)
                scale = 1 + rngs[i].uniform(-SIZE_JITTER, SIZE_JITTER)
            place = SIDE * (np.array(centre) + shift)
            share = shapes.cover(shape, place, SIDE * RADIUS * scale)[:, None]  # (P, 1)
            image += share * (np.array(COLOURS[colour]) - image)
        images[i] = np.rint(image).T.reshape(3, SIDE, SIDE).astype(np.uint8)
    return torch.from_numpy(images)
