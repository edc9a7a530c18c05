"""The public face of everything that reads data: load a data set, make batches. S side in pixels.

captioned.py says what a data set can do; shapes, digits, cifar, emoji, folders, shards and streams
are the kinds; shuffle.py says which pairs an update sees, and batches.py makes batches of them.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from minidalle.config import Config, DataConfig
from minidalle.data import scenes, shapes
from minidalle.data.batches import batches, cut_captions, unseen_words
from minidalle.data.captioned import Captioned, InMemory, Unusable
from minidalle.data.cifar import load_cifar
from minidalle.data.digits import load_digits
from minidalle.data.emoji import load_emoji
from minidalle.data.folders import load_folder
from minidalle.data.shards import load_shards
from minidalle.data.streams import Stream, is_url, load_stream

__all__ = ["batches", "captions", "cut_captions", "first", "load", "unseen_words", "version"]

STREAMED_CAPTIONS = 100_000  # enough for the tokenizer: a stream has no end


def load(config: Config, split: str) -> Captioned | Stream:
    """Return the data set named by config.data: len(), [i] -> ((3, S, S) uint8, caption).

    split: 'train', 'test', or for the worlds that keep combinations out of training 'held_out'
    and, of 'scenes', 'bindings'. URLs give a Stream for training, which has no length; they
    must come from this call's overrides, not from a file.
    Raises ValueError for an unknown name or split, and for a folder without a usable pair.
    """
    name = config.data.name
    if name not in LOADERS:
        raise ValueError(f"unknown data.name={name!r}; choose from {', '.join(LOADERS)}")
    splits = SPLITS.get(name, ("train", "test"))
    if split not in splits:
        raise ValueError(f"split of {name!r} must be one of {', '.join(splits)}, got {split!r}")
    return LOADERS[name](split, config.data, config.seed)


def version(config: Config) -> dict[str, str]:
    """Say which version of a drawn world a run learns from; of data that lie in files nothing."""
    if config.data.name not in WORLDS:
        return {}
    world = WORLDS[config.data.name]
    name = f"{config.data.name}, version {world.VERSION}"
    return {"data": f"{name}, places moved by {world.JITTER}, radii by {world.SIZE_JITTER}"}


def load_world(split: str, data: DataConfig, seed: int) -> InMemory:
    """Draw a world that is drawn by a program."""
    world = WORLDS[data.name]
    if data.image_size != world.SIDE:
        raise ValueError(f"{data.name} are drawn at {world.SIDE} pixels, got {data.image_size=}")
    drawn = world.draw(data.n_train if split == "train" else data.n_test, seed, split)
    return InMemory(drawn.images, drawn.captions, drawn.attributes, split)


def load_own(split: str, data: DataConfig, seed: int) -> Captioned | Stream:
    """Return your own images, from config.data.folder: a folder or a URL. See folders.py."""
    if is_url(data.folder):
        return load_stream(data.folder, split, data)
    root = Path(data.folder)
    if not data.folder or not root.is_dir():
        raise ValueError(
            f"data.folder={data.folder!r} is not a folder; say where your images are with "
            "--data FOLDER or data.folder=FOLDER"
        )
    tables = [root / "captions.tsv", root / "captions.csv"]
    has_table = any(table.is_file() for table in tables)
    shards = not has_table and any(path.is_file() for path in root.rglob("*.tar"))
    dataset = (load_shards if shards else load_folder)(root, split, data)
    if not len(dataset):
        raise ValueError(f"no pair of {root} is left for {split!r}: add more images")
    return dataset


WORLDS = {"shapes": shapes, "scenes": scenes}
LOADERS = {  # the names that config.data.name may have
    "shapes": load_world,
    "scenes": load_world,
    "mnist": load_digits,
    "fashion_mnist": load_digits,
    "cifar": load_cifar,
    "emoji": load_emoji,
    "folder": load_own,
}

SPLITS = {  # of the worlds that keep combinations out of training
    **dict.fromkeys(("shapes", "mnist", "fashion_mnist"), ("train", "test", "held_out")),
    "scenes": scenes.SPLITS,
}


def captions(dataset: Captioned | Stream) -> Iterator[str]:
    """Yield the captions of a data set, for the tokenizer; of a stream its first 100,000."""
    if isinstance(dataset, Stream):
        for _, caption in islice(dataset.examples(workers=0), STREAMED_CAPTIONS):
            yield caption
        return
    for i in range(len(dataset)):
        try:
            yield dataset.caption(i)
        except Unusable as why:
            dataset.pass_over(i, why)


def first(dataset: Captioned | Stream, n: int) -> tuple[Tensor, list[str]]:
    """Return the first n pairs, or all where there are fewer: (n, 3, S, S) uint8, n captions."""
    if isinstance(dataset, Stream):
        pairs = islice(dataset.examples(workers=0), n)
    else:
        pairs = (dataset[i] for i in range(min(n, len(dataset))))
    images, captions = zip(*pairs, strict=True)
    return torch.stack(images), list(captions)
