"""Shards from URLs: every rank and worker has its own, bad ones are counted."""

import functools
import itertools
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from helpers.own_images import BROKEN, good_pairs, write_tar

from minidalle.config import DataConfig
from minidalle.data.streams import Stream, is_url, load_stream

DATA = DataConfig("folder", image_size=16, n_test=5)


@pytest.fixture
def urls(tmp_path):
    """Return four pipe: URLs with ten pairs each."""
    pairs = list(good_pairs(40).items())
    paths = [write_tar(tmp_path / f"{k}.tar", dict(pairs[10 * k : 10 * k + 10])) for k in range(4)]
    return [f"pipe:cat {path}" for path in paths]


def one_epoch(stream, n):
    return [caption for _, caption in itertools.islice(stream.examples(workers=0), n)]


def numbers(captions):
    return sorted(int(caption.split()[-1]) for caption in captions)


def test_an_epoch_holds_every_pair_once_and_epochs_differ(urls):
    captions = one_epoch(Stream(urls, DATA), 80)
    assert numbers(captions[:40]) == numbers(captions[40:]) == list(range(40))
    assert captions[:40] != captions[40:]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_shards_out(urls, world):
    stream = Stream(urls, DATA)
    parts = [stream.of_rank((7, 0), rank, world, stream.crop) for rank in range(world)]
    seen = [caption for part in parts for caption in one_epoch(part, 40 // world)]
    assert numbers(seen) == list(range(40))
    with pytest.raises(ValueError, match="4 shards are too few for 5"):
        stream.of_rank((7, 0), 0, 5, stream.crop)


@pytest.mark.slow
def test_worker_processes_share_the_shards_out(urls):
    captions = [caption for _, caption in itertools.islice(Stream(urls, DATA).examples(2), 40)]
    assert numbers(captions) == list(range(40))


def test_another_seed_is_another_shuffle(urls):
    stream = Stream(urls, DATA)
    orders = [one_epoch(stream.of_rank((seed,), 0, 1, stream.crop), 40) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_images_over_http_and_a_missing_shard(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    for k in range(3):
        write_tar(tmp_path / f"{k}.tar", good_pairs(6))
    (tmp_path / "1.tar").unlink()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = SimpleHTTPRequestHandler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{{0..2}}.tar"
        stream = load_stream(url, "train", DATA)
        test = load_stream(url, "test", DATA)
        captions = one_epoch(stream, 12)
        server.shutdown()
    assert numbers(captions) == sorted(2 * list(range(6)))
    assert "broken or missing tar" in stream.tally.line() and "1.tar" in stream.tally.line()
    assert len(test) == 5 and test[0][0].shape == (3, 16, 16)


def test_broken_pairs_are_counted_and_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", good_pairs(10) | BROKEN)
    stream = Stream([f"pipe:cat {path}"], DATA)
    good = [c for _, c in stream.good(stream.pairs(stream.urls, epoch=0))]
    assert numbers(good) == list(range(10))
    for name, (_, _, reason) in BROKEN.items():
        assert stream.tally.bad[name] == reason


@pytest.mark.parametrize("content", [b"", b"hello" * 500])
def test_a_stream_without_a_usable_pair_ends_with_an_error(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match="no usable pair"):
        one_epoch(Stream([f"pipe:cat {tmp_path / 'a.tar'}"], DATA), 1)


def test_a_truncated_shard_gives_what_came_before(tmp_path, urls):
    path = tmp_path / "0.tar"
    path.write_bytes(path.read_bytes()[:18_000])
    stream = Stream([urls[0]], DATA)
    good = [c for _, c in stream.good(stream.pairs(stream.urls, epoch=0))]
    assert 2 <= len(good) < 10


def test_one_shard_is_too_few_for_training_and_testing(urls):
    with pytest.raises(ValueError, match="at least two"):
        load_stream(urls[0], "train", DATA)


def test_what_counts_as_a_url():
    assert is_url("http://a/b.tar") and is_url("https://a") and is_url("pipe:cat a.tar")
    assert not is_url("/data/http:/x") and not is_url("C:\\data") and not is_url("data")


def test_an_image_of_a_stream_is_cropped_with_its_own_generator(urls):
    def crop(image, size, generator):
        return torch.rand((3, size, size), generator=generator)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part = Stream(urls, DATA).of_rank((3, 1), 0, 1, crop)
        again = Stream(urls, DATA).of_rank((3, 1), 0, 1, crop)
    first, second = (list(itertools.islice(p.examples(0), 3)) for p in (part, again))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], first[1][0])
