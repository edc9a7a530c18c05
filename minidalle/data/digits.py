"""Coloured captioned scenes of MNIST digits (one or two) or Fashion-MNIST clothes on plain grounds.

N scenes, S = 32 pixels a side. The paper's idea of the toy world with real handwriting: some
(thing, colour) pairs never appear in training. Origins, licences and checksums: data/README.md.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from minidalle.config import DataConfig
from minidalle.data.captioned import InMemory
from minidalle.data.cropping import area_resize, resize_all
from minidalle.data.shapes import BACKGROUNDS, COLOURS
from minidalle.files import fetch

MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
}
MD5 = {  # as published
    "mnist/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "mnist/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "mnist/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "mnist/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "fashion_mnist/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "fashion_mnist/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
SIDE = 32
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
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
NONE = "none"  # attribute of the second digit where there is only one


@dataclass(frozen=True)
class Things:
    """Grey images (M, 28, 28) uint8, labels (M,), their names, and how many stand in a scene."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    at_most: int


def load_digits(split: str, data: DataConfig, seed: int) -> InMemory:
    """Return MNIST or Fashion-MNIST as coloured scenes. split: 'train', 'test' or 'held_out'."""
    n = data.n_train if split == "train" else data.n_test
    scenes = draw(load_things(data.name, "train" if split == "train" else "t10k"), n, seed, split)
    scenes.images, scenes.size = resize_all(scenes.images, data.image_size), data.image_size
    return scenes


def load_things(name: str, part: str) -> Things:
    """Read the published images of 'mnist' or 'fashion_mnist'; part is 'train' or 't10k'."""
    images, labels = (
        read_idx(fetch(file, MD5[file], MIRRORS[name]))
        for file in (f"{name}/{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    )
    names, at_most = (DIGITS, 2) if name == "mnist" else (CLOTHES, 1)
    return Things(images, labels, names, at_most)


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array in a gzipped idx file, MNIST's format. Raises ValueError."""
    try:
        raw = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)  # raw[3] is the number of axes
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole idx file of bytes: {error}") from error


def held_out(names: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    """Return the (thing, colour) pairs kept out of training: one colour of eight for each thing."""
    colours = tuple(COLOURS)
    return frozenset((name, colours[(3 * i + 1) % 8]) for i, name in enumerate(names))


def draw(things: Things, n: int, seed: int, split: str) -> InMemory:
    """Colour n scenes. The first k of n are the same for every n >= k.

    split: 'train' and 'test' have pairs outside held_out, 'held_out' only pairs inside; the caller
    gives test images for the last two. Attributes of digits: count, digit, colour, second digit,
    second colour, background; of clothes: item, colour, background.
    """
    uniform = np.random.default_rng([seed, len(things.images)]).random((n, 16))
    apart = held_out(things.names)
    allowed = {
        name: [c for c in COLOURS if ((name, c) in apart) == (split == "held_out")]
        for name in things.names
    }
    images, captions, attributes = np.empty((n, 3, SIDE, SIDE), np.uint8), [], []
    small = area_resize(torch.tensor(things.images[:, 3:25, 3:25]), 16, 16).numpy()
    for i, u in enumerate(uniform):
        # Choose the things in turn, so that each is seen, then colours and ground at random.
        two = things.at_most == 2 and u[0] < 0.5
        chosen = [i % len(things.images), int(u[1] * len(things.images))][: 1 + two]
        names = [things.names[things.labels[j]] for j in chosen]
        colours = [_pick(allowed[name], u[2 + k]) for k, name in enumerate(names)]
        ground = _pick(tuple(BACKGROUNDS), u[4])
        # Paint them, put them into words, and note what is there.
        greys = [(small if two else things.images)[j] for j in chosen]
        images[i] = _paint(greys, colours, ground, u[5:8])
        captions.append(describe(names, colours, ground, u[8:14]))
        attributes.append(_attributes(things.at_most, names, colours, ground))
    return InMemory(torch.from_numpy(images), captions, attributes, split)


def _pick(options, u: float):
    return options[int(u * len(options))]


def _paint(greys: list[np.ndarray], colours: list[str], ground: str, u: np.ndarray) -> np.ndarray:
    """Lay grey images side by side as ink on a ground, at random heights; (3, S, S) uint8."""
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


def _attributes(at_most: int, names: list[str], colours: list[str], ground: str) -> dict[str, str]:
    if at_most == 1:
        return {"item": names[0], "colour": colours[0], "background": ground}
    return {
        "count": "two" if len(names) == 2 else "one",
        "digit": names[0],
        "colour": colours[0],
        "second digit": [*names, NONE][1],
        "second colour": [*colours, NONE][1],
        "background": ground,
    }


def describe(names: list[str], colours: list[str], ground: str, u: np.ndarray) -> str:
    """Put a scene into words. u (6 numbers in [0, 1)) chooses template and synonyms."""
    template = _pick(ONE if len(names) == 1 else TWO, u[0])
    words = [*names, *colours, ground]
    words = [_pick(SYNONYMS.get(w, (w,)), x) for w, x in zip(words, u[1:], strict=False)]
    things, inks = words[: len(names)], words[len(names) : -1]
    text = template.format(d=things[0], c=inks[0], d2=things[-1], c2=inks[-1], g=words[-1])
    # Make 'a' right: 'an orange eight', 'an 8', and none before a plural.
    words = text.split(" ")
    plural = things[0] in ("trousers", "pants")
    for i, word in enumerate(words[:-1]):
        if word == "a" and plural and words[i + 1].strip(",") not in (*BACKGROUNDS, "gray"):
            words[i] = ""
        elif word == "a" and words[i + 1][0] in "aeio8":
            words[i] = "an"
    return " ".join(word for word in words if word)
