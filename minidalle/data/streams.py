"""Tar shards from http(s): and pipe: URLs, streamed by the `webdataset` library. S side in pixels.

A stream has no places to jump to, so its order cannot be resumed exactly: a resumed run starts a
new shuffle. Every rank, and every worker process of a rank, reads shards of its own. The last shard
is kept for testing.
Source: Aizman et al. 2020, arXiv:2001.01858.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from minidalle.config import DataConfig, Typed
from minidalle.data.captioned import InMemory, Tally, Unusable
from minidalle.data.cropping import centre_crop
from minidalle.data.folders import name_hash
from minidalle.data.images import check_aspect, decode_image, read_caption
from minidalle.data.shards import NO_IMAGE, group_pairs
from minidalle.data.shuffle import generator_for

BUFFER = 1000  # pairs shuffled together
WARNING = (
    "images from http: and pipe: URLs come in an order that cannot be resumed exactly: "
    "a resumed run starts a new shuffle"
)


def is_url(folder: str) -> bool:
    """Return whether `folder` is to be streamed."""
    return re.match(r"(https?|pipe):", folder) is not None


def load_stream(url: str, split: str, data: DataConfig) -> "Stream | InMemory":
    """Return the stream of all shards but the last, or n_test pairs of the last, in memory.

    url: braces count up, as in 'https://host/{00000..00099}.tar'; :: stands between URLs.
    Raises ValueError for a single shard, a last one without a usable pair, or a URL that was not
    typed in this call: `pipe:` runs a command, and a configuration that someone sent must not.
    """
    from webdataset.shardlists import expand_urls

    if not isinstance(url, Typed):
        raise ValueError(
            f"data.folder={url!r} does not come from this call, and a URL can run a command: if "
            "you trust it, say it with --data URL or as the override data.folder=URL"
        )
    urls = expand_urls(url)
    if len(urls) < 2:
        raise ValueError(f"{url!r} is one shard; give at least two, for the last is the test set")
    if split == "train":
        return Stream(urls[:-1], data)
    last = Stream(urls[-1:], data)
    pairs = list(islice(last.good(last.pairs(last.urls, epoch=0)), data.n_test))
    last.tally.close(len(pairs), urls[-1])
    images, captions = zip(*pairs, strict=True)
    return InMemory(torch.stack(images), list(captions), None, split)


class Stream(IterableDataset):
    """Endless (name, (3, S, S) uint8 image, caption); a bad pair is (name, None, Unusable)."""

    split = "train"

    def __init__(self, urls: list[str], data: DataConfig):
        self.urls, self.data, self.size = urls, data, data.image_size
        self.seed, self.rank, self.world, self.crop = (0,), 0, 1, centre_crop
        self.tally = Tally()

    def of_rank(self, seed: tuple[int, ...], rank: int, world: int, crop: Callable) -> "Stream":
        """Return this stream with another shuffle, cut down to the shards of one rank of `world`.

        crop(image, S, generator) -> (3, S, S). Raises ValueError if there are too few shards.
        """
        if len(self.urls) < world:
            raise ValueError(f"{len(self.urls)} shards are too few for {world} processes")
        part = copy(self)
        part.seed, part.rank, part.world, part.crop = seed, rank, world, crop
        return part

    def __iter__(self) -> Iterator[tuple[str, Tensor | None, str | Unusable]]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        for epoch in count():
            shuffled = np.random.default_rng([*self.seed, epoch]).permutation(len(self.urls))
            mine = [self.urls[i] for i in shuffled[self.rank :: self.world][part::parts]]
            found = False
            for pair in self.pairs(mine, epoch):
                found = found or pair[1] is not None
                yield pair
            if not found:
                raise ValueError(f"no usable pair in {', '.join(mine[:3])}")

    def pairs(self, urls: list[str], epoch: int):
        """Yield the pairs of these shards once, shuffled in a buffer."""
        from webdataset.filters import _shuffle
        from webdataset.tariterators import tar_file_expander, url_opener

        broken: list[str] = []

        def note(error: Exception) -> bool:  # and go on with the next shard
            broken.append(str(error.args[-1]) if error.args else type(error).__name__)
            return True

        def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
            for url in urls:
                opened = url_opener([{"url": url}], handler=note)
                files = tar_file_expander(opened, handler=note, eof_value=None)
                yield from group_pairs((file["fname"], file["data"]) for file in files)

        draw = random.Random(f"{self.seed} {epoch} {urls[0]}")
        for number, (key, sample) in enumerate(_shuffle(samples(), BUFFER, rng=draw)):
            key = key.removeprefix("/")
            generator = generator_for(*self.seed, epoch, number, name_hash(key))
            try:
                yield key, *self._read(sample, generator)
            except Unusable as why:
                yield key, None, why
        for url in broken:
            yield url, None, Unusable("broken or missing tar")

    def _read(self, sample: dict[str, bytes], generator: torch.Generator) -> tuple[Tensor, str]:
        if "image" not in sample:
            raise Unusable(NO_IMAGE)
        caption = read_caption(sample.get("caption"), self.data.min_caption)
        image = decode_image(sample["image"])
        check_aspect(image.shape[1:], self.data.max_aspect)
        return self.crop(image, self.size, generator), caption

    def examples(self, workers: int) -> Iterator[tuple[Tensor, str]]:
        """Yield ((3, S, S) uint8, caption) for ever, from `workers` processes."""
        workers = min(workers, len(self.urls) // self.world)
        return self.good(DataLoader(self, batch_size=None, num_workers=workers))

    def good(self, pairs: Iterable) -> Iterator[tuple[Tensor, str]]:
        """Count the bad pairs and yield the others. Raises ValueError if too many are bad."""
        for name, image, caption in pairs:
            self.tally.total += 1
            if image is not None:
                yield image, caption
                continue
            self.tally.add(name, caption)
            self.tally.check()
