"""The order of examples: a pure function of (seed, step), for any number of ranks."""

import time

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.data.shuffle import Shuffle, generator_for

COUNTS = st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(any)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 9), st.integers(1, 4), st.integers(0, 3))
def test_every_epoch_holds_every_example_once(counts, seed, window, epoch):
    n = sum(counts)
    rows = Shuffle(counts, seed, window).rows(epoch * n, (epoch + 1) * n)
    assert sorted(rows) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 12), st.integers(0, 30), st.integers(1, 3))
def test_a_jump_gives_what_walking_gives(counts, batch_size, step, window):
    shuffle = Shuffle(counts, 5, window)
    walked = [shuffle.batch(s, batch_size) for s in range(step + 1)][-1]
    assert np.array_equal(Shuffle(counts, 5, window).batch(step, batch_size), walked)


def test_ranks_together_see_the_global_batch():
    shuffle = Shuffle([10, 20, 3], seed=1, window=2)
    whole = shuffle.batch(7, batch_size=11)
    for world in (2, 3, 11):
        parts = [shuffle.batch(7, 11, rank, world) for rank in range(world)]
        assert np.array_equal(whole[0::world], parts[0])
        assert sorted(np.concatenate(parts)) == sorted(whole)


def test_epochs_and_seeds_differ():
    a, b = Shuffle([100], seed=0), Shuffle([100], seed=1)
    assert not np.array_equal(a.rows(0, 100), a.rows(100, 200))
    assert not np.array_equal(a.rows(0, 100), b.rows(0, 100))


def test_epochs_differ_in_the_order_of_the_shards():
    shuffle = Shuffle([10] * 8, seed=0, window=1)
    first = [tuple(shuffle.rows(80 * epoch, 80 * epoch + 80)[::10] // 10) for epoch in range(4)]
    assert len(set(first)) == 4


def test_a_window_reads_few_shards_at_a_time():
    rows = Shuffle([10] * 8, seed=3, window=2).rows(0, 80)
    for start in range(0, 80, 20):
        assert len(set(rows[start : start + 20] // 10)) == 2


def test_shards_and_examples_are_shuffled_evenly():
    first = [Shuffle([4] * 5, seed, window=2).rows(0, 1)[0] for seed in range(2000)]
    counts = np.bincount(first, minlength=20)
    assert counts.min() > 60 and counts.max() < 145  # 100 each; 4 and 4.5 standard deviations


def test_a_far_step_of_a_large_set_is_found_at_once():
    shuffle, began = Shuffle([10_000] * 25_000, seed=0), time.process_time()  # 250 million pairs
    assert len(set(shuffle.batch(200_000, 1024))) == 1024
    assert time.process_time() - began < 5


def test_a_generator_depends_on_every_number():
    def draw(*numbers):
        return torch.rand(3, generator=generator_for(*numbers)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({tuple(draw(*n)) for n in [(1, 2, 3), (1, 3, 2), (2, 1, 3), (1, 2), (1, 2, 4)]}) == 5
