"""The order of the data over many shards, for any number of processes."""

import time

import torch
from helpers.own_images import good_pairs, write_tar

from minidalle import data
from minidalle.config import get_config
from minidalle.data.shards import ENTRY
from minidalle.data.shuffle import Shuffle

GIB = 2**30


def test_a_hundred_shards_give_any_number_of_processes_the_same_batches(tmp_path):
    pairs = list(good_pairs(300).items())
    for k in range(100):
        write_tar(tmp_path / f"{k:05d}.tar", dict(pairs[k * 3 : k * 3 + 3]))
    sizes = ("data.image_size=16", "dvae.image_size=16", "clip.image_size=16", "dalle.grid=4")
    config = get_config(
        "toy", ["data.name=folder", f"data.folder={tmp_path}", "data.n_test=12", *sizes]
    )
    dataset = data.load(config, "train")
    assert len(dataset.counts) == 100
    for step in (0, 17):  # within the first epoch, and across its end
        whole = next(data.batches(dataset, config, "dvae")(step))["images"]
        for world in (2, 4):
            parts = [
                next(data.batches(dataset, config, "dvae", rank=r, world=world)(step))["images"]
                for r in range(world)
            ]
            assert all(torch.equal(part, whole[r::world]) for r, part in enumerate(parts))


def test_the_index_of_250_million_pairs_is_small_and_jumping_is_quick():
    assert ENTRY.itemsize * 250e6 < 8 * GIB
    shuffle, began = Shuffle([10_000] * 25_000, seed=0), time.process_time()
    shares = [shuffle.batch(200_000, 1024, r, 8) for r in range(8)]
    assert time.process_time() - began < 5
    assert len({i for share in shares for i in share.tolist()}) == 1024
