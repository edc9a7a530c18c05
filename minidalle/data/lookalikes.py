"""Batches for CLIP in which many captions differ in one attribute only: hard negatives.

N examples, B rows of a batch, A attributes, M readings of a caption. In a batch drawn at random
two captions nearly always differ in several things at once, and CLIP learns to look at the easiest
of them.
Source: ours; hard negative captions as in Yuksekgonul et al. 2023, arXiv:2210.01936.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minidalle.config import Config
from minidalle.data import scenes, shapes
from minidalle.data.captioned import InMemory
from minidalle.data.kept_tokens import all_tokens
from minidalle.data.shuffle import Shuffle

WEIGHTS = {  # how often a family varies each attribute; others share the rest
    "shape": 0.4, "position": 0.25, "digit": 0.35, "second digit": 0.25, "count": 0, "item": 0.5,
    "other shape": 0.2, "exchange": 0.2,
}  # fmt: skip
_SHAPES, _COLOURS = ("shape", "other shape"), ("colour", "other colour")
EXCHANGES = ((_SHAPES, _COLOURS), (_SHAPES,), (_COLOURS,))  # of two objects: what changes places
N_REBUILT = 6000  # examples of which a reconstruction is kept


class Lookalikes:
    """Families of examples that are alike in all attributes but one, or but for an exchange.

    attributes: of each example, complete. stated: what its caption states of them, once for each
    way to read it.
    """

    def __init__(self, attributes: Sequence[dict[str, str]], stated: Sequence[Sequence[dict]]):
        self.names = list(attributes[0])
        self.values = {k: sorted({a[k] for a in attributes}) for k in self.names}
        self.members: dict[tuple[int, ...], list[int]] = {}  # examples by their attributes
        self.shown = self._codes(attributes)  # (N, A)
        most = max(map(len, stated))  # captions with fewer readings repeat their last one
        readings = [self._codes([s[min(i, len(s) - 1)] for s in stated]) for i in range(most)]
        self.said = torch.stack(readings, 1)  # (N, M, A), -1 where the caption is silent
        for i, key in enumerate(map(tuple, self.shown.tolist())):
            self.members.setdefault(key, []).append(i)
        counts = next((i for i, k in enumerate(self.names) if k in ("count", "layout")), None)
        kinds: dict[int, list[tuple[int, ...]]] = {}  # scenes of one digit, of two
        for key in self.members:
            kinds.setdefault(0 if counts is None else key[counts], []).append(key)
        self.kinds = list(kinds.values())
        at, self.exchanges = self.names.index, []  # orders of the attributes
        for pairs in EXCHANGES if "other shape" in self.names else ():
            swapped = {at(a): at(b) for pair in pairs for a, b in (pair, pair[::-1])}
            self.exchanges.append([swapped.get(i, i) for i in range(len(self.names))])
        # A family varies one of the attributes, or the last of these.
        varied = [*self.names, "exchange"] if self.exchanges else self.names
        rest = (1 - sum(WEIGHTS.get(k, 0) for k in varied)) / max(
            1, sum(k not in WEIGHTS for k in varied)
        )
        weights = np.array([WEIGHTS.get(k, rest) for k in varied])
        self.weights = weights / weights.sum()

    def _codes(self, attributes: Sequence[dict[str, str]]) -> Tensor:
        index = {k: {v: i for i, v in enumerate(self.values[k])} for k in self.names}
        # -1: not said; -2: said, but no example has it.
        rows = [[index[k].get(a[k], -2) if k in a else -1 for k in self.names] for a in attributes]
        return torch.tensor(rows)

    def batch(self, size: int, generator: np.random.Generator) -> np.ndarray:
        """Draw the rows (size,) of one batch, family after family.

        A family has one example for each value of one attribute, or for each exchange;
        combinations that no example has, such as held-out pairs, are passed over.
        """
        rows: list[int] = []
        while len(rows) < size:
            keys = self.kinds[generator.integers(len(self.kinds))]
            key = keys[generator.integers(len(keys))]
            which = generator.choice(len(self.weights), p=self.weights)
            if which < len(key):
                values = range(len(self.values[self.names[which]]))
                family = [(*key[:which], value, *key[which + 1 :]) for value in values]
            else:
                family = [key, *(tuple(key[i] for i in order) for order in self.exchanges)]
            for member in dict.fromkeys(family):
                members = self.members.get(member, [])
                if members:
                    rows.append(members[generator.integers(len(members))])
        return np.array(rows[:size])

    def fits(self, rows: np.ndarray | Tensor) -> Tensor:
        """Say which caption is true of which image, in one of its readings.

        Returns (B, B) bool, [i, j]: the caption of rows[i] is true of the image of rows[j].
        """
        said = self.said[rows][:, None]  # (B, 1, M, A)
        shown = self.shown[rows][None, :, None]  # (1, B, 1, A)
        return ((said == shown) | (said == -1)).all(-1).any(-1)


def batches(
    dataset: InMemory,
    config: Config,
    tokenizer,
    dvae: torch.nn.Module,
    seed: int = 0,
    cache: Path | None = None,
) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """As `data.batches` for CLIP on labelled data, but with look-alikes and reconstructions.

    A share config.train_clip.lookalikes of the updates take families, the others the usual order;
    of the images a share config.train_clip.rebuilt comes from the dVAE, as all candidates will.
    Yields "images" (B, 3, S, S) in [0, 1], "text" (B, L) and "fits" (B, B) for CLIP.loss.
    Raises ValueError where nobody knows what the images show.
    """
    train, length = config.train_clip, config.dalle.caption_len
    n = len(dataset)
    captions = [dataset.caption(i) for i in range(n)]
    attributes = [dataset.attributes(i) for i in range(n)]
    if None in attributes:
        raise ValueError(
            f"nobody knows what the images of {config.data.name!r} show, so no captions are known "
            f"to be alike: set train_clip.lookalikes=0 train_clip.rebuilt=0"
        )
    if config.data.name == "scenes":  # captions of these two worlds may leave something open
        stated = [scenes.stated(c) for c in captions]
    elif config.data.name == "shapes":
        stated = [[shapes.read_caption(c)] for c in captions]
    else:
        stated = [[a] for a in attributes]
    families = Lookalikes(attributes, stated)
    text = tokenizer.encode_batch(captions, length)  # (N, L)
    rebuilt = rebuild(dvae, all_tokens(dataset, dvae, cache)[:N_REBUILT])
    shuffle = Shuffle([n], seed)

    def from_step(start: int) -> Iterator[dict[str, Tensor]]:
        for step in count(start):
            draw = np.random.default_rng([seed, step])
            if draw.random() < train.lookalikes:
                rows = families.batch(train.batch_size, draw)
            else:
                rows = shuffle.batch(step, train.batch_size)
            images = dataset.images[rows].clone()  # (B, 3, S, S)
            again = np.flatnonzero((draw.random(len(rows)) < train.rebuilt) & (rows < len(rebuilt)))
            images[again] = rebuilt[rows[again]]
            yield {"images": images / 255, "text": text[rows], "fits": families.fits(rows)}

    return from_step


@torch.no_grad()
def rebuild(dvae: torch.nn.Module, tokens: np.ndarray) -> Tensor:
    """Decode image tokens (N, G * G) -> uint8 (N, 3, S, S)."""
    grid, device = dvae.config.grid, next(dvae.parameters()).device
    parts = [
        dvae.decode(torch.from_numpy(part.astype(np.int64)).view(-1, grid, grid).to(device))
        for part in np.array_split(tokens, range(128, len(tokens), 128))
    ]
    return (torch.cat(parts).cpu() * 255).round().byte()
