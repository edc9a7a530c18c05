"""Shards from URLs: every rank and worker has its own, bad ones are counted."""

import functools
import io
import itertools
import json
import shutil
import tarfile
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from helpers.own_images import BROKEN, good_pairs, png, write_tar

from minidalle import data
from minidalle.cli import main
from minidalle.config import DataConfig, Typed, from_json, get_config, replace, to_json
from minidalle.data.streams import Stream, is_url, load_stream
from minidalle.stages import SHIPPED

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
        stream = load_stream(Typed(url), "train", DATA)
        test = load_stream(Typed(url), "test", DATA)
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
        assert f" {reason} (" in stream.tally.line() and name in stream.tally.names[False, reason]


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


def test_a_configuration_from_a_file_starts_no_command(tmp_path, urls):
    command = f"pipe:touch {tmp_path / 'harm'}::{urls[0]}::{urls[1]}"
    typed = get_config("toy", ["data.name=folder", f"data.folder={command}"])
    read = from_json(to_json(typed))
    assert read == typed
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"does not come from this call.*--data"):
            data.load(read, split)
    changed = replace(typed, data=replace(typed.data, n_test=3))  # still what was typed
    assert isinstance(data.load(changed, "train"), Stream) and not (tmp_path / "harm").exists()


def test_a_run_that_someone_sent_starts_no_command(tmp_path, capsys):
    run = shutil.copytree(SHIPPED / "toy", tmp_path / "run")
    path = run / "dalle" / "config.json"
    config = json.loads(path.read_text())
    config["data"] |= {"name": "folder", "folder": f"pipe:touch {tmp_path / 'harm'}::pipe:false"}
    path.write_text(json.dumps(config))
    assert main(["evaluate", "--run", str(run)]) == 2
    assert (
        "does not come from this call" in capsys.readouterr().err
        and not (tmp_path / "harm").exists()
    )


def test_the_first_pairs_of_a_stream_are_found_without_its_length(urls):
    images, captions = data.first(Stream(urls, DATA), 7)
    assert images.shape == (7, 3, 16, 16) and len(captions) == 7


def test_the_data_and_the_first_stage_take_a_stream(tmp_path, urls, capsys):
    sizes = ["dvae.n_hid=8", "dalle.text_len=5", "clip.context_length=6"]
    sizes += ["train_dvae.batch_size=4", "train_dvae.steps=1"]
    options = ["--run", str(tmp_path / "run"), "--data", "::".join(urls), *sizes]
    assert main(["data", *options]) == 0
    said = capsys.readouterr().out
    assert "streamed training and 10 test images" in said
    assert "About 200 of 200 captions are longer than 4 tokens" in said
    with pytest.warns(UserWarning, match="cannot be resumed exactly"):
        assert main(["dvae", *options]) == 0  # starts from codes spread over the data


@pytest.mark.slow
def test_a_run_is_measured_on_a_stream(tmp_path, urls, monkeypatch):
    monkeypatch.setattr("minidalle.evaluation.run.N_TRAINING", 8)
    toy = str(shutil.copytree(SHIPPED / "toy", tmp_path / "toy"))
    own = ["--data", "::".join(urls), "-n", "2", "--candidates", "1"]
    assert main(["evaluate", "--run", toy, *own]) == 0


def test_a_key_that_comes_again_or_has_a_dot_mixes_nothing(tmp_path):
    body = dict.fromkeys(("a.png", "c.png"), png((1, 0, 0))) | {"a.txt": b"old", "c.txt": b"c"}
    names = ["a.png", "a.txt", "a.png", "a.txt", "my.photo.png", "my.photo.txt", "c.png", "c.txt"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, name in enumerate(names):
            content = body.get(name, b"") if i < 2 or i > 3 else png((2, 0, 0))[:-1] + b"x"
            content = b"new" if i == 3 else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    stream = Stream([f"pipe:cat {tmp_path / 'a.tar'}"], DATA)
    good = [(im[0, 0, 0].item(), c) for im, c in stream.good(stream.pairs(stream.urls, epoch=0))]
    assert sorted(good) == [(1, "c"), (1, "old"), (2, "new")]
    assert "1 no image called KEY.jpg" in stream.tally.line()
