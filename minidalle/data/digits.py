"""Coloured captioned scenes from grey pictures: digits (one or two) or clothes on plain grounds.

N scenes, S = 32 pixels a side. The paper's idea of the toy world with real handwriting: some
(thing, colour) pairs never appear in training.
"""

from dataclasses import dataclass

import numpy as np
import torch

from minidalle.data.captioned import InMemory
from minidalle.data.cropping import area_resize
from minidalle.data.shapes import BACKGROUNDS, COLOURS

SIDE = 32
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SYNONYMS = {name: (name, str(i)) for i, name in enumerate(DIGITS)} | {
    "trousers": ("trousers", "pants"),
    "pullover": ("pullover", "sweater"),
    "purple": ("purple", "violet"),
    "grey": ("grey", "gray"),
}
ONE = (  # the first is the plainest
    "a {c} {d} on a {g} background",
    "{c} {d} on {g}",
    "on a {g} background, a {c} {d}",
    "a {d} in {c} on a {g} ground",
    "{g} background with a {c} {d}",
)
TWO = (
    "a {c} {d} and a {c2} {d2} on a {g} background",
    "{c} {d} left of {c2} {d2} on {g}",
    "on a {g} background, a {c} {d} and then a {c2} {d2}",
    "a {c2} {d2} to the right of a {c} {d}, {g} background",
)
PLURAL = ("trousers", "pants")
NONE = "none"  # attribute of the second digit where there is only one


@dataclass(frozen=True)
class Things:
    """Grey pictures (M, 28, 28) uint8, labels (M,), their names, and how many stand in a scene."""

    pictures: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    at_most: int


def held_out(names: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    """Return the (thing, colour) pairs kept out of training: one colour of eight for each thing."""
    colours = tuple(COLOURS)
    return frozenset((name, colours[(3 * i + 1) % 8]) for i, name in enumerate(names))


def draw(things: Things, n: int, seed: int, split: str) -> InMemory:
    """Colour n scenes. The first k of n are the same for every n >= k.

    split: 'train' and 'test' have pairs outside held_out, 'held_out' only pairs inside; the caller
    gives test pictures for the last two. Attributes of digits: count, digit, colour, second digit,
    second colour, background; of clothes: item, colour, background.
    """
    uniform = np.random.default_rng([seed, len(things.pictures)]).random((n, 16))
    apart = held_out(things.names)
    allowed = {
        name: [c for c in COLOURS if ((name, c) in apart) == (split == "held_out")]
        for name in things.names
    }
    images, captions, attributes = np.empty((n, 3, SIDE, SIDE), np.uint8), [], []
    small = area_resize(torch.tensor(things.pictures[:, 3:25, 3:25]), 16, 16).numpy()
    for i, u in enumerate(uniform):
        pair = things.at_most == 2 and u[0] < 0.5
        chosen = [i % len(things.pictures), int(u[1] * len(things.pictures))][: 1 + pair]
        names = [things.names[things.labels[j]] for j in chosen]
        colours = [_pick(allowed[name], u[2 + k]) for k, name in enumerate(names)]
        ground = _pick(tuple(BACKGROUNDS), u[4])
        sources = small if pair else things.pictures
        images[i] = _paint([sources[j] for j in chosen], colours, ground, u[5:8])
        captions.append(describe(names, colours, ground, u[8:14]))
        attributes.append(_attributes(things, names, colours, ground))
    return InMemory(torch.from_numpy(images), captions, attributes, split)


def _pick(options, u: float):
    return options[int(u * len(options))]


def _paint(greys: list[np.ndarray], colours: list[str], ground: str, u: np.ndarray) -> np.ndarray:
    """Lay grey pictures side by side as ink on a ground, at random heights; (3, S, S) uint8."""
    side = greys[0].shape[0]
    canvas = np.empty((3, SIDE, SIDE))
    canvas[:] = np.array(BACKGROUNDS[ground])[:, None, None]
    for k, (grey, colour) in enumerate(zip(greys, colours, strict=True)):
        top = int(u[k] * (SIDE - side + 1))
        left = k * side if len(greys) == 2 else int(u[2] * (SIDE - side + 1))
        ink = grey / 255  # (side, side)
        patch = canvas[:, top : top + side, left : left + side]
        patch += ink * (np.array(COLOURS[colour])[:, None, None] - patch)
    return canvas.round().astype(np.uint8)


def describe(names: list[str], colours: list[str], ground: str, u: np.ndarray | None = None) -> str:
    """Put a scene into words. u (6 numbers in [0, 1)) chooses template and synonyms."""
    u = np.zeros(6) if u is None else u
    template = _pick(ONE if len(names) == 1 else TWO, u[0])
    words = [*names, *colours, ground]
    words = [_pick(SYNONYMS.get(w, (w,)), x) for w, x in zip(words, u[1:], strict=False)]
    things, inks = words[: len(names)], words[len(names) : -1]
    text = template.format(d=things[0], c=inks[0], d2=things[-1], c2=inks[-1], g=words[-1])
    return _articles(text)


def _articles(text: str) -> str:
    """Make 'a' right: 'an orange eight', 'an 8', and none before a plural."""
    words = text.split(" ")
    plural = any(word.strip(",") in PLURAL for word in words)
    for i, word in enumerate(words[:-1]):
        if word != "a":
            continue
        if plural and words[i + 1].strip(",") not in BACKGROUNDS and words[i + 1] != "gray":
            words[i] = ""
        elif words[i + 1][0] in "aeio8":
            words[i] = "an"
    return " ".join(word for word in words if word)


def _attributes(
    things: Things, names: list[str], colours: list[str], ground: str
) -> dict[str, str]:
    if things.at_most == 1:
        return {"item": names[0], "colour": colours[0], "background": ground}
    name2, colour2 = (names[1], colours[1]) if len(names) == 2 else (NONE, NONE)
    return {
        "count": "two" if len(names) == 2 else "one",
        "digit": names[0],
        "colour": colours[0],
        "second digit": name2,
        "second colour": colour2,
        "background": ground,
    }
