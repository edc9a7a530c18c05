"""In which order are the examples seen? A pure function of (seed, step), for any number of ranks.

The order is one endless row of example numbers: epoch after epoch, each a new shuffle. Update s
takes the rows s * B up to (s + 1) * B, B the global batch, and rank r keeps rows r::world of them,
so a run is resumed from its step alone and on any number of machines. Examples that lie in files
(shards) are shuffled in two steps, so that reading stays local: the shards, then the examples
inside each window of a few neighbouring shards.

Source: ours; the two-step shuffle is that of Aizman et al. 2020, arXiv:2001.01858 (WebDataset).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch


class Shuffle:
    """The endless shuffled row of the examples 0 … sum(counts) - 1.

    counts: examples in each shard; data in memory are one shard. window: shards shuffled together.
    """

    def __init__(self, counts: Sequence[int], seed: int, window: int = 8):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.counts)])  # (shards + 1,)
        self.length = int(self.first[-1])
        assert self.length > 0
        self.seed, self.window = seed, window
        self._windows = lru_cache(2)(self._draw_windows)  # of this epoch and the next
        self._members = lru_cache(2)(self._draw_members)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the example numbers at places start … stop - 1 of the row, (stop - start,)."""
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            epoch, place = divmod(start, self.length)
            starts = self._windows(epoch)[1]
            window = int(np.searchsorted(starts, place, side="right")) - 1
            members = self._members(epoch, window)
            skip = place - int(starts[window])
            parts.append(members[skip : skip + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Return rank's part of the global batch of update `step`: rows rank::world of it."""
        return self.rows(step * batch_size, (step + 1) * batch_size)[rank::world]

    def _draw_windows(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the shards of each window, and the place at which each window starts."""
        shards = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.counts))
        groups = [shards[i : i + self.window] for i in range(0, len(shards), self.window)]
        sizes = [int(self.counts[group].sum()) for group in groups]
        return groups, np.concatenate([[0], np.cumsum(sizes)])

    def _draw_members(self, epoch: int, window: int) -> np.ndarray:
        group = self._windows(epoch)[0][window]
        members = [np.arange(self.first[shard], self.first[shard + 1]) for shard in group]
        draw = np.random.default_rng([self.seed, epoch, window + 1])
        return draw.permutation(np.concatenate(members))


def generator_for(*numbers: int) -> torch.Generator:
    """Return a generator that depends on all of `numbers`, say (seed, step, row), and nothing else.

    One generator a row, not one a batch: a rank then draws for its own rows alone.
    """
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
