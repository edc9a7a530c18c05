"""What every captioned data set can do, and how a bad pair is passed over. S side in pixels.

A pair that cannot be read is replaced by the next one that can, so the others keep their places
and a resumed run sees what the first one saw.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from minidalle.data.cropping import centre_crop

MAX_BAD = 0.1  # bad pairs of all, above which training stops …
FEW_BAD = 10  # … but never for this many or fewer
MEMORY = 2**30  # bytes of decoded images kept


class Unusable(Exception):
    """Why a pair cannot be used. filtered: it is sound, but the options leave it out."""

    def __init__(self, reason: str, filtered: bool = False):
        super().__init__(reason)
        self.reason, self.filtered = reason, filtered


class Tally:
    """Counts the pairs that were passed over. total: the pairs that there are."""

    def __init__(self, total: int = 0):
        self.total = total
        self.counts: Counter[tuple[bool, str]] = Counter()  # (filtered, reason) -> pairs
        self.names: dict[tuple[bool, str], list[str]] = {}  # the first different ones of each

    def add(self, name: str, why: Unusable) -> None:
        kind = (why.filtered, why.reason)
        self.counts[kind] += 1
        names = self.names.setdefault(kind, [])
        if name not in names and len(names) < 4:
            names.append(name)

    def _count(self, filtered: bool) -> int:
        return sum(n for (f, _), n in self.counts.items() if f == filtered)

    def line(self) -> str:
        """Return one line: how many, why, and the first names; empty if there is nothing to say."""
        parts = []
        for filtered, verb in ((False, "skipped"), (True, "left out by the options")):
            reasons = []
            for kind in sorted(kind for kind in self.counts if kind[0] == filtered):
                names = ", ".join(self.names[kind][:3]) + ", …" * (len(self.names[kind]) > 3)
                reasons.append(f"{self.counts[kind]} {kind[1]} ({names})")
            if reasons:
                parts.append(f"{verb} {self._count(filtered)}: {', '.join(reasons)}")
        return f"of {self.total} pairs, {'; '.join(parts)}" if parts else ""

    def check(self) -> None:
        """Raise ValueError if too many are bad."""
        if self._count(filtered=False) > max(FEW_BAD, MAX_BAD * self.total):
            raise ValueError(
                f"more than {MAX_BAD:.0%} of the pairs are bad: {self.line()}; mend or remove them"
            )

    def close(self, n_good: int, place: object, found: Callable[[], str] = str) -> None:
        """After a first look at all pairs: warn of the bad. found says what else lies there.

        Raises ValueError where no pair is good or too many are bad.
        """
        if not n_good:
            raise ValueError(f"no usable pair in {place}: {self.line() or found()}")
        self.check()
        if self.line():
            warnings.warn(self.line())


class Captioned:
    """Captioned images: len(), [i] -> ((3, S, S) uint8, caption).

    counts are the pairs in each file; data in memory are one file (see shuffle.py). A kind of data
    set brings the three methods below; the first two may raise Unusable.
    """

    read: Callable[[int], Tensor]  # image i, (3, H, W) uint8, at its own size
    caption: Callable[[int], str]
    fingerprint: Callable[[], str]  # a digest that changes whenever an image changes

    def __init__(self, counts: list[int], split: str, size: int, tally: Tally | None = None):
        self.counts, self.split, self.size = counts, split, size
        self.tally = tally or Tally(sum(counts))
        self._passed: set[int] = set()  # the bad pairs, beyond those found at the start
        fits = sum(counts) * 3 * size**2 <= MEMORY
        self._kept: dict[int, Tensor] | None = {} if fits else None

    def name(self, i: int) -> str:
        """Return what to call pair i in a message."""
        return str(i)

    def attributes(self, i: int) -> dict[str, str] | None:
        """Return what is known to be in image i, or None."""
        return None

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        return self.pair(i % len(self))

    def pair(
        self, i: int, crop: Callable = centre_crop, generator: torch.Generator | None = None
    ) -> tuple[Tensor, str]:
        """Return pair i, or the next that can be read: ((3, S, S) uint8, caption)."""
        for j in range(i, i + len(self)):
            try:
                return self._image(j % len(self), crop, generator), self.caption(j % len(self))
            except Unusable as why:
                self.pass_over(j % len(self), why)
        raise ValueError(f"not one of {len(self)} pairs can be read: {self.tally.line()}")

    def pass_over(self, i: int, why: Unusable) -> None:
        """Count pair i as unusable; say so the first time; stop if there are too many."""
        if i in self._passed:
            return
        self._passed.add(i)
        self.tally.add(self.name(i), why)
        if len(self._passed) == 1:
            warnings.warn(f"a pair cannot be read and is passed over: {self.tally.line()}")
        self.tally.check()

    def _image(self, i: int, crop: Callable, generator: torch.Generator | None) -> Tensor:
        if crop is not centre_crop or self._kept is None:
            return crop(self.read(i), self.size, generator)
        if i not in self._kept:
            self._kept[i] = centre_crop(self.read(i), self.size)
        return self._kept[i]


class InMemory(Captioned):
    """Images in memory: images (N, 3, S, S) uint8, N captions, N dicts of what is in them."""

    def __init__(
        self, images: Tensor, captions: list[str], attributes: list[dict] | None, split: str
    ):
        super().__init__([len(captions)], split, images.shape[-1])
        assert len(images) == len(captions) == len(attributes or captions)
        self.images, self.captions, self._attributes = images, captions, attributes
        self._kept = None  # they are kept already

    def read(self, i: int) -> Tensor:
        return self.images[i]

    def caption(self, i: int) -> str:
        return self.captions[i]

    def attributes(self, i: int) -> dict[str, str] | None:
        return self._attributes[i] if self._attributes else None

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.contiguous().numpy()).hexdigest()
