"""Batches from any data set but streams: a pure function of (seed, update) for any number of ranks.

B this rank's part of a batch, S side in pixels, L caption tokens, G grid.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.2 and appendices A.2 and B.2.
"""

import contextlib
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minidalle.config import STAGES, Config, from_json
from minidalle.data.captioned import Captioned, InMemory, Unusable
from minidalle.data.cropping import centre_crop, crop_stage_one, crop_stage_two
from minidalle.data.kept_tokens import NO_TOKEN, all_tokens, draw, encode
from minidalle.data.shuffle import Shuffle, generator_for
from minidalle.data.streams import WARNING, Stream
from minidalle.tokenizer import PAD, BPETokenizer, normalise

MANY = 10_000  # captions whose lengths are looked at
CROP, DROPOUT, TOKENS = 0, 1, 2  # what a row draws random numbers for


@dataclass(frozen=True)
class Part:
    """What one rank sees of every global batch: rows rank::world of batch_size."""

    seed: int
    batch_size: int
    rank: int
    world: int

    def generator(self, step: int, row: int, purpose: int) -> torch.Generator:
        """Return the generator of this rank's row `row`, the same whatever the number of ranks."""
        return generator_for(self.seed, step, self.rank + row * self.world, purpose)


def batches(
    dataset: Captioned | Stream,
    config: Config,
    stage: str,
    tokenizer=None,
    dvae=None,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    cache: Path | None = None,
    workers: int | None = None,
) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """Return a callable: batches(start) yields the batches of updates start, start + 1, … for ever.

    stage 'dvae' gives "images" (B, 3, S, S) float32 in [0, 1]; 'dalle' "text" (B, L) and "tokens"
    (B, G * G) int64; 'clip' "images" and "text". The global batch has config.train_STAGE.batch_size
    rows, of which rank r of `world` gets rows r::world. Crops and BPE dropout are for the training
    split only. cache: a folder in which image tokens are kept. workers: threads that read images
    (for a stream, processes); None chooses.
    Raises ValueError for an unknown stage, or one without the tokenizer or dVAE that it needs.
    """
    if stage not in STAGES[1:]:
        raise ValueError(f"stage must be one of {', '.join(STAGES[1:])}, got {stage!r}")
    if tokenizer is None and stage != "dvae":
        raise ValueError(f"stage {stage!r} needs a tokenizer")
    if dvae is None and stage == "dalle":
        raise ValueError("stage 'dalle' needs a trained dVAE, for the image tokens")
    train = getattr(config, f"train_{stage}")
    if not 0 <= rank < world <= train.batch_size:
        raise ValueError(f"need 0 <= rank < world <= {train.batch_size=}, got {rank=} {world=}")
    part = Part(seed, train.batch_size, rank, world)
    training = dataset.split == "train"

    # How are images cut, and where do they come from?
    crop = centre_crop
    if training and config.data.augment:
        crop = crop_stage_one if stage == "dvae" else crop_stage_two
    if workers is None:
        workers = 0 if isinstance(dataset, InMemory) else min(8, os.cpu_count() or 1)
    if isinstance(dataset, Stream):
        read = _from_stream(dataset, part, crop, workers)
    elif (
        (stage == "dalle" and crop is centre_crop and training and not train.draw_tokens)
        # Tokens are worth keeping where the run sees each image at least once.
        and train.steps * train.batch_size >= len(dataset)
    ):
        read = _from_tokens(dataset, part, all_tokens(dataset, dvae, cache))
    else:
        read = _from_images(dataset, part, crop, workers)
    dropout = config.tokenizer.dropout if stage == "dalle" and training else 0.0
    say = stage == "dalle" and training and rank == 0
    if say and (cut := cut_captions(dataset, tokenizer, config)):
        warnings.warn(cut)

    def encode_text(captions: list[str], step: int) -> Tensor:
        length = config.dalle.caption_len
        if not dropout:
            return tokenizer.encode_batch(captions, length)  # (B, L)
        rows = [
            tokenizer.encode_batch([caption], length, dropout, part.generator(step, row, DROPOUT))
            for row, caption in enumerate(captions)
        ]
        return torch.cat(rows)  # (B, L)

    def encode_images(images: Tensor, step: int) -> Tensor:
        if not (training and train.draw_tokens):
            return encode(dvae, images)  # (B, G * G)
        numbers = [
            torch.rand(config.dalle.grid**2, generator=part.generator(step, row, TOKENS))
            for row in range(len(images))
        ]
        return draw(dvae, images, torch.stack(numbers))  # (B, G * G)

    def from_step(start: int) -> Iterator[dict[str, Tensor]]:
        for step, (seen, captions) in zip(count(start), read(start), strict=False):
            batch = {}
            if stage != "dalle":
                batch["images"] = seen.float() / 255  # (B, 3, S, S)
            else:  # whole images or their tokens
                batch["tokens"] = encode_images(seen, step) if seen.dim() == 4 else seen
            if stage != "dvae":
                batch["text"] = encode_text(captions, step)
            yield batch

    return from_step


def cut_captions(dataset: Captioned | Stream, tokenizer, config: Config) -> str:
    """Say how many captions are too long for the transformer; '' where none is.

    Of a large set 10,000 are looked at, of a stream 200. tokenizer None: one learnt from these.
    """
    texts = []
    if isinstance(dataset, Stream):
        texts = [caption for _, caption in islice(dataset.examples(workers=0), MANY // 50)]
    else:  # in one place, or in ten, so that few shards are opened
        n = len(dataset) if len(dataset) <= MANY else MANY // 10
        starts = np.linspace(0, len(dataset) - n, 10).astype(int)
        for i in sorted({i for start in starts for i in range(start, start + n)}):
            with contextlib.suppress(Unusable):
                texts.append(dataset.caption(i))
    length = config.dalle.caption_len
    about = "" if tokenizer else "about "
    tokenizer = tokenizer or BPETokenizer.train(texts, config.tokenizer.vocab_size)
    n = int((tokenizer.encode_batch(texts, length + 1)[:, -1] != PAD).sum())
    verb = "is" if n == 1 else "are"
    which = f"{about}{n} of {len(texts)} captions {verb} longer than {length} tokens"
    return f"{which} (dalle.text_len) and {verb} cut" if n else ""


def unseen_words(tokenizer, folder: Path, caption: str) -> list[str]:
    """Return the words of a caption that no training caption had, where the tokenizer can tell.

    A tokenizer with fewer tokens than its config.json in `folder` allows has made every word that
    it saw one token.
    """
    path = folder / "config.json"
    known = path.is_file() and from_json(path.read_text(encoding="utf-8")).tokenizer
    if not known or tokenizer.vocab_size >= known.vocab_size:
        return []
    words = dict.fromkeys(re.findall("[a-z]+", normalise(caption)))
    return [word for word in words if len(tokenizer.encode(word)) > 1]


Reader = Callable[[int], Iterator[tuple[Tensor, list[str]]]]  # start -> (images, captions), …


def _from_images(dataset: Captioned, part: Part, crop: Callable, workers: int) -> Reader:
    """Read and crop images: (B, 3, S, S) uint8. Threads read ahead; the order is unmoved."""
    shuffle = Shuffle(dataset.counts, part.seed)

    def read(step: int) -> tuple[Tensor, list[str]]:
        rows = shuffle.batch(step, part.batch_size, part.rank, part.world)
        pairs = [
            dataset.pair(int(i), crop, part.generator(step, row, CROP))
            for row, i in enumerate(rows)
        ]
        return torch.stack([image for image, _ in pairs]), [caption for _, caption in pairs]

    return lambda start: _ahead(read, start, workers)


def _ahead(read: Callable, start: int, workers: int) -> Iterator:
    """Yield read(start), read(start + 1), …, each worked out by a thread ahead of its turn."""
    if not workers:
        yield from map(read, count(start))
    threads = ThreadPoolExecutor(workers)
    try:
        waiting = deque(threads.submit(read, start + i) for i in range(workers))
        for step in count(start + workers):
            waiting.append(threads.submit(read, step))
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _from_tokens(dataset: Captioned, part: Part, tokens: np.ndarray) -> Reader:
    """Look tokens up: (B, G * G) int64. One that is missing is replaced as Captioned.pair does."""
    shuffle = Shuffle(dataset.counts, part.seed)
    good = np.flatnonzero(tokens[:, 0] != NO_TOKEN)
    if not len(good):
        raise ValueError(f"not one of {len(dataset)} images has tokens: {dataset.tally.line()}")

    def read(step: int) -> tuple[Tensor, list[str]]:
        rows = shuffle.batch(step, part.batch_size, part.rank, part.world)
        rows = good[np.searchsorted(good, rows) % len(good)]  # itself, or the next good one
        captions = [dataset.caption(int(i)) for i in rows]
        return torch.from_numpy(tokens[rows].astype(np.int64)), captions

    return lambda start: map(read, count(start))


def _from_stream(stream: Stream, part: Part, crop: Callable, workers: int) -> Reader:
    """Take the pairs of a stream as they come: (B, 3, S, S) uint8."""
    warnings.warn(WARNING)
    size = len(range(part.rank, part.batch_size, part.world))

    def read(start: int) -> Iterator[tuple[Tensor, list[str]]]:
        own = stream.of_rank((part.seed, start), part.rank, part.world, crop)
        pairs = own.examples(workers)
        while True:
            images, captions = zip(*islice(pairs, size), strict=True)
            yield torch.stack(images), list(captions)

    return read
