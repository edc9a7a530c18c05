"""A small world of captioned images, drawn here: one object on a plain ground, 32 pixels a side.

N scenes, P points, V vertices. Some (shape, colour) pairs never appear in training: a model that
can draw them from their captions has learnt to combine (zero-shot, as in the paper's section 3).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SIDE = 32  # pixels
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
COLOURS = {
    "red": (214, 32, 40),
    "orange": (255, 138, 0),
    "yellow": (250, 226, 40),
    "green": (34, 158, 62),
    "cyan": (60, 214, 224),
    "blue": (48, 92, 240),
    "purple": (146, 44, 190),
    "pink": (255, 150, 200),
}
SIZES = {"small": 7.6, "large": 11.4}  # radius in pixels
POSITIONS = {  # centre in pixels (x, y), y grows downwards
    "top left": (12.0, 12.0),
    "top right": (20.0, 12.0),
    "middle": (16.0, 16.0),
    "bottom left": (12.0, 20.0),
    "bottom right": (20.0, 20.0),
}
BACKGROUNDS = {
    "white": (244, 244, 244),
    "black": (8, 8, 8),
    "navy": (14, 22, 92),
    "grey": (128, 128, 128),
}
ATTRIBUTES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
    "background": tuple(BACKGROUNDS),
}
# Every colour and every shape lacks exactly one partner: 8 of the 64 pairs.
HELD_OUT = frozenset((s, tuple(COLOURS)[(3 * i + 4) % 8]) for i, s in enumerate(SHAPES))
SPLITS = ("train", "test", "held_out")  # seen pairs, seen pairs, held-out pairs

SYNONYMS = {
    "circle": ("circle", "disc"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
    "small": ("small", "little"),
    "large": ("large", "big"),
    "purple": ("purple", "violet"),
    "grey": ("grey", "gray"),
    "top left": ("top left", "upper left"),
    "top right": ("top right", "upper right"),
    "middle": ("middle", "centre"),
    "bottom left": ("bottom left", "lower left"),
    "bottom right": ("bottom right", "lower right"),
}
TEMPLATES = (  # the first states every attribute in the plainest order
    "a {size} {colour} {shape} in the {position} on a {background} background",
    "on a {background} background, a {size} {colour} {shape} in the {position}",
    "in the {position}, a {size} {colour} {shape} on {background}",
    "{size} {colour} {shape}, {position}, {background} background",
    "a {colour} {shape} in the {position}, {size}, on {background}",
    "a {size} {colour} {shape} on a {background} background",  # position left open
)
VERSION = 2  # of this world: a run of another one is not gone on with
JITTER = 2.0  # pixels the centre may move, each way
REACH = 1.55  # no outline of radius 1, and no half pixel beyond it, lies further out
SIZE_JITTER = 0.08  # relative


@dataclass(frozen=True)
class Scenes:
    """images uint8 (N, 3, 32, 32); one caption and one dict of attributes for each."""

    images: Tensor
    captions: list[str]
    attributes: list[dict[str, str]]


@lru_cache(maxsize=4)  # every stage of a run asks for the same scenes
def draw(n: int, seed: int = 0, split: str = "train") -> Scenes:
    """Draw n scenes. The first k of n scenes are the same for every n >= k. Do not write to them.

    split is 'train' or 'test' (pairs outside HELD_OUT) or 'held_out' (only pairs inside).
    Raises ValueError for another split or n < 1.
    """
    check_draw(n, split, SPLITS)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    uniform = rng.random((n, 16))  # one row a scene, one column a decision
    pairs = [
        (s, c) for s in SHAPES for c in COLOURS if ((s, c) in HELD_OUT) == (split == "held_out")
    ]
    attributes, captions = [], []
    for row in uniform:
        shape, colour = _pick(pairs, row[0])
        chosen = {"shape": shape, "colour": colour}
        for column, name in enumerate(("size", "position", "background"), start=1):
            chosen[name] = _pick(ATTRIBUTES[name], row[column])
        attributes.append(chosen)
        captions.append(describe(chosen, row[7:13], _pick(TEMPLATES, row[6])))
    shift = (2 * uniform[:, 13:15] - 1) * JITTER  # (N, 2)
    scale = 1 + (2 * uniform[:, 15] - 1) * SIZE_JITTER  # (N,)
    return Scenes(render(attributes, shift, scale), captions, attributes)


def check_draw(n: int, split: str, splits: tuple[str, ...]) -> None:
    """Raise ValueError for a split that a drawn world lacks, or n < 1."""
    if split not in splits:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(splits)}")
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")


def _pick(options, u: float):
    return options[int(u * len(options))]


def describe(
    attributes: dict[str, str], uniform: np.ndarray | None = None, template: str = TEMPLATES[0]
) -> str:
    """Put attributes into words. uniform (5 or more numbers in [0, 1)) chooses the synonyms."""
    words = {}
    for i, (name, value) in enumerate(attributes.items()):
        options = SYNONYMS.get(value, (value,))
        words[name] = options[0] if uniform is None else _pick(options, uniform[i])
    text = template.format(**words)
    return text.replace("a orange", "an orange")


def read_caption(caption: str) -> dict[str, str]:
    """Return the attributes that a caption of this world states, by searching its words.

    Blue on navy is no trap: every word names one thing. Unknown words are passed over.
    """
    text, found = f" {caption.lower().replace(',', ' ')} ", {}
    for name, values in ATTRIBUTES.items():
        for value in values:
            if any(f" {word} " in text for word in SYNONYMS.get(value, (value,))):
                found[name] = value
    return found


def render(
    attributes: list[dict[str, str]],
    shift: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> Tensor:
    """Draw scenes from their attributes -> uint8 (N, 3, 32, 32).

    shift (N, 2) moves the centre in pixels, scale (N,) multiplies the radius.
    """
    n = len(attributes)
    shift = np.zeros((n, 2)) if shift is None else shift
    scale = np.ones(n) if scale is None else scale
    images = np.empty((n, 3, SIDE, SIDE), np.uint8)
    for i, a in enumerate(attributes):
        centre = np.array(POSITIONS[a["position"]]) + shift[i]
        share = cover(a["shape"], centre, SIZES[a["size"]] * scale[i])[:, None]  # (P, 1)
        ground, ink = np.array(BACKGROUNDS[a["background"]]), np.array(COLOURS[a["colour"]])
        colours = np.rint(ground + share * (ink - ground))  # (P, 3)
        images[i] = colours.T.reshape(3, SIDE, SIDE).astype(np.uint8)
    return torch.from_numpy(images)


def cover(shape: str, centre: np.ndarray, radius: float) -> np.ndarray:
    """Return the share of each pixel, row by row, that lies inside a shape: (P,) in [0, 1].

    centre (2,) and radius are in pixels. An edge pixel is covered by how far the outline is from
    its centre: anti-aliasing by signed distance.
    """
    at = np.arange(SIDE) + 0.5
    pixels = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)  # (P, 2) as x, y
    offset = (pixels - centre) / radius  # (P, 2)
    near = np.hypot(offset[:, 0], offset[:, 1]) < REACH  # the others lie outside for sure
    distance = radius * signed_distance(shape, offset[near])  # (near P,)
    share = np.zeros(len(pixels))
    share[near] = np.clip(0.5 - distance, 0, 1)
    return share


def signed_distance(shape: str, points: np.ndarray) -> np.ndarray:
    """Distance from points (P, 2) to the outline of a shape of radius 1; negative inside."""
    if shape == "circle":
        return np.hypot(points[:, 0], points[:, 1]) - 0.97
    if shape == "ring":
        return np.abs(np.hypot(points[:, 0], points[:, 1]) - 0.74) - 0.23
    return polygon_distance(points, OUTLINES[shape])


def polygon_distance(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance from points (P, 2) to a closed polygon (V, 2); negative inside."""
    start, end = corners, np.roll(corners, -1, axis=0)  # (V, 2)
    edge = end - start
    offset = points[:, None] - start  # (P, V, 2)
    along = np.clip((offset * edge).sum(-1) / (edge * edge).sum(-1), 0, 1)  # (P, V)
    nearest = offset - along[..., None] * edge
    distance = np.sqrt((nearest * nearest).sum(-1)).min(axis=1)  # (P,)
    # A ray to the right crosses the outline an odd number of times from inside.
    y = points[:, None, 1]
    spans = (start[:, 1] <= y) != (end[:, 1] <= y)  # (P, V)
    side = edge[:, 0] * offset[..., 1] - edge[:, 1] * offset[..., 0]
    crossings = (spans & ((side > 0) == (edge[:, 1] < 0))).sum(axis=1)
    return np.where(crossings % 2 == 1, -distance, distance)


def _regular(radii: tuple[float, ...], n: int, turn: float = 0.0) -> np.ndarray:
    """n corners around the origin, the first at the top, radii taken in turn."""
    angle = 2 * np.pi * np.arange(n) / n + turn
    radius = np.resize(radii, n)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -(y + 2.5)], axis=1) / 15.5


_ARM = 0.35  # half the width of an arm of the cross
OUTLINES = {
    "square": _regular((1.27,), 4, np.pi / 4),
    "triangle": _regular((1.22,), 3) + np.array([0, 0.25]),
    "diamond": np.array([[0, -1.1], [0.7, 0], [0, 1.1], [-0.7, 0]]),
    "star": _regular((1.18, 0.56), 10),
    "heart": _heart(),
    "cross": np.array(
        [
            [-_ARM, -1], [_ARM, -1], [_ARM, -_ARM], [1, -_ARM], [1, _ARM], [_ARM, _ARM],
            [_ARM, 1], [-_ARM, 1], [-_ARM, _ARM], [-1, _ARM], [-1, -_ARM], [-_ARM, -_ARM],
        ]
    ),
}  # fmt: skip
