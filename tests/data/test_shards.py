"""WebDataset shards read by place: the same pairs as the `webdataset` library, in any order."""

import dataclasses
import io
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from helpers.own_images import BROKEN, bomb, good_pairs, png, write_tar

from minidalle.config import DataConfig
from minidalle.data import shards as shards_module
from minidalle.data.images import decode_image
from minidalle.data.shards import load_shards, make_index, read_index

CAPTIONS = [f"image number {i}" for i in range(30)]
DATA = DataConfig("folder", image_size=16, n_test=5)


def write_shards(root: Path, n_shards: int = 3, each: int = 10, extra: dict | None = None) -> Path:
    pairs = list(good_pairs(n_shards * each).items())
    for k in range(n_shards):
        write_tar(root / f"{k:05d}.tar", dict(pairs[k * each : (k + 1) * each]))
    if extra:
        write_tar(root / "extra.tar", extra)
    return root


def both(root, data=DATA):
    return load_shards(root, "train", data), load_shards(root, "test", data)


def captions(dataset):
    return [dataset.caption(i) for i in range(len(dataset))]


def test_all_pairs_are_there_once_and_split(tmp_path):
    train, test = both(write_shards(tmp_path))
    assert sorted(captions(train) + captions(test)) == sorted(CAPTIONS)
    assert 1 <= len(test) <= 8
    for i in range(len(train)):
        image, caption = train[i]
        assert image[:, 8, 8].tolist()[0] == int(caption.split()[-1])


def test_pairs_equal_those_of_the_webdataset_library(tmp_path):
    root = write_shards(tmp_path)
    theirs = {}
    for sample in wds.WebDataset([str(p) for p in sorted(root.glob("*.tar"))], shardshuffle=False):
        theirs[sample["txt"].decode()] = decode_image(sample["png"])
    ours = {d.caption(i): d.read(i) for d in both(root) for i in range(len(d))}
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[caption], theirs[caption]) for caption in ours)


def test_the_index_is_kept_beside_the_tar_and_used(tmp_path, monkeypatch):
    root = write_shards(tmp_path)
    before = captions(load_shards(root, "train", DATA))
    assert sorted(p.name for p in root.iterdir() if "idx" in p.name) == [
        f"{k:05d}.tar.idx.npy" for k in range(3)
    ]
    monkeypatch.setattr("minidalle.data.shards.make_index", lambda _: pytest.fail("made again"))
    assert captions(load_shards(root, "train", DATA)) == before


@pytest.mark.parametrize("damage", ["other tar", "cut", "empty", "pickle"])
def test_a_stale_or_broken_index_is_made_again(tmp_path, damage):
    root = write_shards(tmp_path, n_shards=1)
    load_shards(root, "train", DATA)
    index = root / "00000.tar.idx.npy"
    if damage == "other tar":
        write_tar(root / "00000.tar", {"new": (png(), b"a new pair"), "old": (png(), b"old")})
        assert {"a new pair", "old"} == {c for part in both(root) for c in captions(part)}
        return
    if damage == "pickle":
        np.save(index, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        index.write_bytes(index.read_bytes()[:50] if damage == "cut" else b"")
    assert sum(len(part) for part in both(root)) == 10
    assert len(np.load(index)) == 11  # a head, ten pairs


def test_a_folder_that_cannot_be_written_costs_only_the_index(tmp_path, monkeypatch):
    root = write_shards(tmp_path)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("minidalle.files.np.save", refuse)
    assert sum(len(part) for part in both(root)) == 30
    assert not [p for p in root.iterdir() if p.suffix != ".tar"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pair_is_skipped_counted_and_named(tmp_path, name):
    root = write_shards(tmp_path, extra={name: BROKEN[name]})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read = [part[i][1] for part in both(root) for i in range(len(part))]
    assert set(read) - {"a caption"} == set(CAPTIONS)
    assert any(f"1 {BROKEN[name][2]} (extra.tar" in str(w.message) for w in seen)


def test_a_caption_without_an_image_is_counted(tmp_path):
    root = write_shards(tmp_path)
    tar = write_tar(root / "extra.tar", {"lonely": (None, b"no image here")})
    with pytest.warns(UserWarning, match=f"1 no image called .* \\({tar.name} at byte"):
        load_shards(root, "train", DATA)


@pytest.mark.parametrize("content", ["nothing", "half", "text", "gzip"])
def test_a_broken_tar_loses_only_what_is_broken(tmp_path, content):
    root = write_shards(tmp_path)
    whole = (root / "00001.tar").read_bytes()
    broken = {"nothing": b"", "half": whole[: len(whole) // 2], "text": b"hello" * 999}
    broken["gzip"] = b"\x1f\x8b" + whole
    (root / "00001.tar").write_bytes(broken[content])
    for _ in range(2):  # the second time from the index
        with pytest.warns(UserWarning, match="1 empty, broken or truncated tar \\(00001.tar\\)"):
            train, test = both(root)
    left = set(captions(train) + captions(test))
    assert set(CAPTIONS[:10] + CAPTIONS[20:]) <= left
    assert (len(left) > 20) == (content == "half") and len(left) < 30


@pytest.mark.parametrize("indices", [0, 9])
def test_a_tar_cut_after_it_was_indexed_is_passed_over(tmp_path, monkeypatch, indices):
    reason = "tar that has become shorter" if indices else "tar that was changed since the start"
    monkeypatch.setattr(shards_module, "KEPT_INDICES", indices)
    root = write_shards(tmp_path)
    train = load_shards(root, "train", DATA)
    first, _ = train[0], train.caption(len(train) - 1)
    os.truncate(root / "00002.tar", 0)
    with pytest.warns(UserWarning, match=f"1 {reason}"):
        replaced = train[len(train) - 1]
    assert replaced[1] == first[1] and torch.equal(replaced[0], first[0])


def test_filters_leave_out_but_do_not_blame(tmp_path):
    extra = {"wide": (png(size=(81, 40)), b"a wide image"), "short": (png(), b"dog")}
    root = write_shards(tmp_path, extra=extra)
    data = dataclasses.replace(DATA, min_caption=5, max_aspect=2.0)
    with pytest.warns(UserWarning, match="of 32 pairs, left out by the options 2"):
        train, test = both(root, data)
    assert len(train) + len(test) == 30
    assert sum(len(part) for part in both(root)) == 32  # the index serves other filters too


def test_too_many_bad_pairs_stop_with_an_error(tmp_path):
    root = write_shards(tmp_path, extra={f"b{i}": (bomb(), b"a caption") for i in range(12)})
    with pytest.raises(ValueError, match=r"more than 10% .* skipped 12"):
        load_shards(root, "train", DATA)


def test_shards_without_a_pair_say_so(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no usable pair .* broken or truncated tar"):
        load_shards(tmp_path, "train", DATA)


def test_few_files_and_indices_are_held_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "OPEN_FILES", 2)
    monkeypatch.setattr(shards_module, "KEPT_INDICES", 2)
    train = load_shards(write_shards(tmp_path, n_shards=8, each=4), "train", DATA)
    for i in np.random.default_rng(0).permutation(len(train)):
        train[int(i)]
    mine = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit()
            and os.path.exists(f"/proc/self/fd/{fd}")]  # fmt: skip
    assert sum(name.startswith(str(tmp_path)) for name in mine) <= 2


def test_the_fingerprint_follows_files_and_filters(tmp_path):
    root = write_shards(tmp_path)
    prints = {load_shards(root, "train", DATA).fingerprint() for _ in range(2)}
    prints.add(load_shards(root, "test", DATA).fingerprint())
    prints.add(load_shards(root, "train", dataclasses.replace(DATA, min_caption=3)).fingerprint())
    write_tar(root / "00001.tar", good_pairs(9))
    prints.add(load_shards(root, "train", DATA).fingerprint())
    assert len(prints) == 4


def test_the_index_of_250_million_pairs_takes_what_the_guide_says(tmp_path):
    sizes = []
    for n in (10, 30):
        read_index(write_tar(tmp_path / f"{n}.tar", good_pairs(n)))
        sizes.append((tmp_path / f"{n}.tar.idx.npy").stat().st_size)
    each = (sizes[1] - sizes[0]) / 20
    assert each == 34
    shard = 10_000 * each + sizes[0] - 10 * each
    assert shard == pytest.approx(340_000, rel=0.005)
    assert 25_000 * shard / 2**30 == pytest.approx(7.9, abs=0.05)  # docs/launch/README.md


def test_the_index_holds_true_offsets(tmp_path):
    path = write_tar(tmp_path / "a.tar", good_pairs(3) | {"deep/er": (png(), b"in a folder")})
    index, whole = make_index(path)
    raw = path.read_bytes()
    assert whole and len(index) == 4
    for entry in index:
        start, size = int(entry["image"]), int(entry["image_size"])
        image = decode_image(raw[start : start + size])
        assert image.shape == (3, entry["height"], entry["width"])
        start, size = int(entry["caption"]), int(entry["caption_size"])
        assert len(raw[start : start + size]) == entry["characters"]
    assert np.array_equal(read_index(path)[0], index)


def write_files(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, body in files:
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return path


@pytest.mark.parametrize(
    "again, left",
    [
        ([("a.png", "new"), ("a.txt", b"new")], {"old", "new"}),
        ([("a.png", "new")], {"old"}),
        ([("a.txt", b"new")], {"old"}),
    ],
)
@pytest.mark.parametrize("between", [[], [("b.png", "b"), ("b.txt", b"b")]])
def test_a_key_that_comes_again_is_another_pair(tmp_path, again, left, between):
    colours = {"old": (1, 0, 0), "new": (2, 0, 0), "b": (3, 0, 0)}
    files = [("a.png", "old"), ("a.txt", b"old"), *between, *again]
    files = [(n, png(colours[b]) if isinstance(b, str) else b) for n, b in files]
    for i in range(20):
        files += [(f"{i}.png", png()), (f"{i}.txt", b"another")]
    write_files(tmp_path / "a.tar", files)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = {
            part[i][1]: part[i][0][0, 0, 0].item()
            for part in both(tmp_path)
            for i in range(len(part))
        }
    want = left | ({"b"} if between else set())
    assert {c: v for c, v in found.items() if c != "another"} == {c: colours[c][0] for c in want}
    counted = [w for w in seen if "pairs, skipped 1" in str(w.message)]
    assert len(counted) == (2 if len(again) == 1 else 0)  # half a pair, by either split


def test_keys_with_a_dot_are_counted(tmp_path):
    extra = {"my.photo": (png(), b"a caption"), "fine": (png(), b"fine")}
    root = write_shards(tmp_path, extra=extra)
    with pytest.warns(UserWarning, match=r"of 32 pairs, skipped 1: 1 no image called KEY.jpg"):
        train, test = both(root)
    assert len(train) + len(test) == 31


def test_another_image_of_a_pair_is_not_taken_for_its_own(tmp_path):
    files = [("a.png", png((7, 0, 0))), ("a.seg.png", png((8, 0, 0))), ("a.txt", b"a caption")]
    write_files(tmp_path / "a.tar", files)
    test = load_shards(tmp_path, "test", DATA)
    assert len(test) == 1 and test[0][0][0, 0, 0] == 7


def test_a_fifo_is_no_shard(tmp_path):
    root = write_shards(tmp_path)
    os.mkfifo(root / "pipe.tar")
    assert sum(len(part) for part in both(root)) == 30
