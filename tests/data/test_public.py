"""MNIST, Fashion-MNIST, CIFAR-10 and emoji: files in their published forms, and captions."""

import csv
import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from helpers.own_pictures import png

from minidalle.config import DataConfig
from minidalle.data import cifar, digits, public, shapes
from minidalle.data.digits import CLOTHES, DIGITS, Things, draw, held_out
from minidalle.data.download import DownloadError
from minidalle.data.emoji import load_emoji


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(head + array.tobytes())


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An own MINIDALLE_DATA, and no other place."""
    monkeypatch.setenv("MINIDALLE_DATA", str(tmp_path))
    monkeypatch.setattr(public, "roots", lambda: [tmp_path])
    return tmp_path


def write(home, monkeypatch, file: str, content: bytes):
    (home / file).parent.mkdir(parents=True, exist_ok=True)
    (home / file).write_bytes(content)
    monkeypatch.setitem(public.MD5, file, hashlib.md5(content).hexdigest())


def test_idx_files_are_read_and_their_size_checked(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a.gz").write_bytes(idx(array))
    assert np.array_equal(public.read_idx(tmp_path / "a.gz"), array)
    for damage in (idx(array)[:-20], gzip.compress(gzip.decompress(idx(array))[:-1]), b"", b"text"):
        (tmp_path / "a.gz").write_bytes(damage)
        with pytest.raises(ValueError, match="not a whole idx file"):
            public.read_idx(tmp_path / "a.gz")


def test_the_data_are_looked_for_in_the_shared_folder_first(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDALLE_DATA", str(tmp_path))
    assert public.roots()[0] == tmp_path and public.roots()[1].name == "data"
    monkeypatch.delenv("MINIDALLE_DATA")
    assert len(public.roots()) == 1


def test_a_file_with_another_checksum_is_refused(home, monkeypatch):
    (home / "mnist").mkdir()
    (home / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"other")
    with pytest.raises(DownloadError, match="f68b3c2dcbeaaa9fbdd348bbdeb94873"):
        public.get("mnist/train-images-idx3-ubyte.gz")


def test_mnist_is_loaded_from_its_published_files(home, monkeypatch):
    rng = np.random.default_rng(0)
    for part, n in (("train", 30), ("t10k", 20)):
        pictures = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write(home, monkeypatch, f"mnist/{part}-images-idx3-ubyte.gz", idx(pictures))
        labels = np.arange(n, dtype=np.uint8) % 10
        write(home, monkeypatch, f"mnist/{part}-labels-idx1-ubyte.gz", idx(labels))
    config = DataConfig("mnist", n_train=50, n_test=12, image_size=16)
    train = public.load_digits("mnist", "train", config, seed=0)
    assert len(train) == 50 and train[0][0].shape == (3, 16, 16)
    assert len(public.load_digits("mnist", "held_out", config, seed=0)) == 12


@pytest.fixture(scope="module")
def things():
    """Thirty full grey squares in place of digits: a scene is then known pixel by pixel."""
    pictures = np.zeros((30, 28, 28), np.uint8)
    pictures[:, 6:22, 8:20] = 255
    return Things(pictures, np.arange(30) % 10, DIGITS, 2)


def test_a_scene_shows_the_colours_of_its_attributes(things):
    scenes = draw(things, 40, seed=1, split="train")
    for i in range(len(scenes)):
        picture, found = scenes[i][0].permute(1, 2, 0).reshape(-1, 3).tolist(), scenes.attributes(i)
        colours = [list(shapes.COLOURS[found["colour"]])]
        if found["count"] == "two":
            colours.append(list(shapes.COLOURS[found["second colour"]]))
        ground = list(shapes.BACKGROUNDS[found["background"]])
        assert all(colour in picture for colour in [*colours, ground])


def test_the_first_digit_stands_on_the_left(things):
    scenes = draw(things, 60, seed=2, split="train")
    seen = 0
    for i in range(60):
        found, picture = scenes.attributes(i), scenes[i][0]
        if found["count"] == "two" and found["colour"] != found["second colour"]:
            for name, half in (("colour", picture[..., :16]), ("second colour", picture[..., 16:])):
                colour = torch.tensor(shapes.COLOURS[found[name]])[:, None, None]
                assert (half == colour).all(0).any()
            seen += 1
    assert seen > 10


def test_captions_state_the_attributes(things):
    scenes = draw(things, 300, seed=3, split="train")
    for i in range(300):
        words = scenes.caption(i).replace(",", "").split()
        for name, value in scenes.attributes(i).items():
            if name != "count" and value != digits.NONE:
                assert set(digits.SYNONYMS.get(value, (value,))) & set(words), (name, words)
        assert ("a orange" in scenes.caption(i)) == ("a eight" in scenes.caption(i)) is False


@pytest.mark.parametrize("names", [DIGITS, CLOTHES])
def test_one_pair_in_eight_is_held_out_of_training(names):
    n = 400
    some = Things(np.zeros((30, 28, 28), np.uint8), np.arange(30) % 10, names, 2)
    apart = held_out(names)
    assert len(apart) == 10 and len({thing for thing, _ in apart}) == 10
    for split in ("train", "test", "held_out"):
        scenes = draw(some, n, seed=0, split=split)
        pairs = {(a["digit"], a["colour"]) for a in map(scenes.attributes, range(n))}
        pairs |= {(a["second digit"], a["second colour"]) for a in map(scenes.attributes, range(n))}
        pairs.discard((digits.NONE, digits.NONE))
        assert pairs == apart if split == "held_out" else not pairs & apart and len(pairs) == 70


def test_the_first_scenes_do_not_depend_on_how_many_follow(things):
    few, many = (draw(things, n, seed=4, split="train") for n in (5, 50))
    assert torch.equal(few.images, many.images[:5]) and few.captions == many.captions[:5]


def test_clothes_have_proper_articles():
    u = np.zeros(6)
    assert digits.describe(["trousers"], ["red"], "grey", u) == "red trousers on a grey background"
    u[2] = 0.9
    assert digits.describe(["ankle boot"], ["orange"], "navy") == (
        "an orange ankle boot on a navy background"
    )


def python2_pickle(value) -> bytes:
    """Pickle a value as Python 2 did, in protocol 2: the form in which CIFAR-10 is published."""
    if isinstance(value, dict):
        items = [python2_pickle(item) for pair in value.items() for item in pair]
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(python2_pickle(item) for item in value) + b"e"
    if isinstance(value, bytes):
        return b"T" + struct.pack("<I", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    minus_one = python2_pickle(-1)
    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
    kind += b"(K\x03U\x01|NNN" + minus_one + minus_one + b"K\x00tb"
    shape = b"(" + b"".join(python2_pickle(n) for n in value.shape) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return empty + b"(K\x01" + shape + kind + b"\x89" + python2_pickle(value.tobytes()) + b"tb"


def cifar_batch(n: int = 5) -> tuple[bytes, np.ndarray]:
    pictures = np.random.default_rng(n).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    batch = {b"batch_label": b"x", b"labels": list(range(n)), b"data": pictures.reshape(n, -1)}
    return b"\x80\x02" + python2_pickle(batch) + b".", pictures


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_a_cifar_batch_is_read_as_the_ordinary_reader_reads_it():
    raw, pictures = cifar_batch()
    theirs = pickle.loads(raw, encoding="bytes")
    ours = cifar.read_cifar_batch(raw)
    assert np.array_equal(ours[0].reshape(5, -1), theirs[b"data"])
    assert np.array_equal(ours[0], pictures) and ours[1].tolist() == theirs[b"labels"]


def test_cifar_is_read_from_its_published_archive(home, monkeypatch):
    file, want = io.BytesIO(), []
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            raw, pictures = cifar_batch(k + 3)
            want.append(pictures)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    write(home, monkeypatch, "cifar10/cifar-10-python.tar.gz", file.getvalue())
    train = cifar.load_cifar("train", DataConfig("cifar"), seed=0)
    test = cifar.load_cifar("test", DataConfig("cifar"), seed=0)
    assert np.array_equal(train.images.numpy(), np.concatenate(want[:5]))
    assert np.array_equal(test.images.numpy(), want[5])
    assert train.attributes(2) == {"class": "bird"} and "bird" in train.caption(2)


def test_cifar_is_read_from_unpacked_files_and_from_residuals(home):
    raw, pictures = cifar_batch()
    unpacked = home / "cifar10" / "cifar-10-batches-py"
    unpacked.mkdir(parents=True)
    (unpacked / "test_batch").write_bytes(raw)
    test = cifar.load_cifar("test", DataConfig("cifar", image_size=16), seed=0)
    want = torch.nn.functional.avg_pool2d(torch.from_numpy(pictures).double(), 2)
    assert (test.images.double() - want).abs().max() <= 0.5 + 1e-4
    y = pictures.copy()
    y[:, 0] -= y[:, 1]
    y[:, 2] -= y[:, 1]
    for axis in (3, 2):
        y = np.diff(y, axis=axis, prepend=np.zeros_like(np.take(y, [0], axis)))
    np.savez(home / "cifar10" / "test_batch.npz", residuals=y, labels=np.arange(5, dtype=np.uint8))
    test = cifar.load_cifar("test", DataConfig("cifar"), seed=0)
    assert np.array_equal(test.images.numpy(), pictures)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_pickle_in_place_of_cifar_runs_nothing(tmp_path):
    raw = pickle.dumps({b"data": Hostile(tmp_path / "harm"), b"labels": [0]}, protocol=2)
    with pytest.raises(ValueError, match="not a CIFAR-10 python batch"):
        cifar.read_cifar_batch(raw)
    assert not (tmp_path / "harm").exists()
    pickle.loads(raw)[b"data"].close()  # the file does run in an ordinary reader
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "raw", [b"", b"text", pickle.dumps({}), pickle.dumps([1]), cifar_batch()[0][:99]]
)
def test_what_is_no_cifar_batch_is_refused(raw):
    with pytest.raises(ValueError, match="not a CIFAR-10 python batch"):
        cifar.read_cifar_batch(raw)


EMOJI = {  # code -> (name, colour)
    "1F600": ("grinning face", (250, 200, 0)),
    "1F438": ("frog", (0, 200, 0)),
    "2764-FE0F": ("red heart", (200, 0, 0)),
    "1F1EB-1F1F7": ("flag: France", (0, 0, 200)),
}
LAYOUTS = {  # published sets: how a code becomes a file name, and where the names come from
    "twemoji": (lambda code: f"assets/72x72/{code.lower()}.png", None),
    "noto": (
        lambda c: f"png/128/emoji_u{c.lower().replace('-fe0f', '').replace('-', '_')}.png",
        "test",
    ),
    "openmoji": (lambda code: f"color/72x72/{code}.png", "csv"),
}


def emoji_files(layout: str) -> dict[str, bytes]:
    rename, names = LAYOUTS[layout]
    files = {rename(code): png(colour, (72, 72)) for code, (_, colour) in EMOJI.items()}
    files[rename("1F44B-1F3FD")] = png((9, 9, 9), (72, 72))  # a skin tone: left out
    files |= {
        rename("1F600").replace("72x72", "16x16").replace("128", "32"): png((1, 1, 1), (16, 16))
    }
    if layout == "openmoji":
        files |= {
            rename(code).replace("color", "black"): png((0, 0, 0), (72, 72)) for code in EMOJI
        }
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerows([("emoji", "hexcode", "annotation")])
        rows.writerows([("?", code, name) for code, (name, _) in EMOJI.items()])
        files["data/openmoji.csv"] = text.getvalue().encode()
    if names == "test":
        lines = [
            f"{c.replace('-', ' ')} ; fully-qualified # ? E1.0 {n}" for c, (n, _) in EMOJI.items()
        ]
        files["emoji-test.txt"] = "\n".join(["# Version 15.0", "", *lines]).encode()
    return files


@pytest.mark.filterwarnings("ignore:of 4 pairs")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
def test_emoji_sets_are_read_as_they_are_published(tmp_path, layout, form):
    place = tmp_path / f"set.{form}"
    files = emoji_files(layout)
    if form == "folder":
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    elif form == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"set-14.0/{name}", content)
    else:
        with tarfile.open(place, "w:gz") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(f"set-14.0/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    config = DataConfig("emoji", folder=str(place), n_test=1)
    parts = [load_emoji(split, config) for split in ("train", "test")]
    found = {d.caption(i): d[i][0][:, 16, 16].tolist() for d in parts for i in range(len(d))}
    want = {name: list(colour) for name, colour in EMOJI.values()}
    if layout == "twemoji":  # no list of names: Unicode's own, of single characters
        want = {"grinning face": [250, 200, 0], "frog face": [0, 200, 0]}
        want["heavy black heart"] = [200, 0, 0]
    assert found == want


def test_emoji_arrays_are_read_without_skin_tones(home):
    folder = home / "emoji"
    folder.mkdir()
    rows = [(0, "1F600", "grinning face", ""), (1, "1F44B", "waving hand", "")]
    rows.append((2, "1F44B-1F3FD", "waving hand: medium", "1F44B"))
    text = "\n".join(
        "\t".join(map(str, r)) for r in [("row", "code", "caption", "skintone_base"), *rows]
    )
    (folder / "captions.tsv").write_text(text)
    images = np.zeros((3, 72, 72, 4), np.uint8)
    images[0, ..., :] = (200, 100, 0, 255)
    images[1, :, 36:] = (0, 0, 0, 128)
    np.savez(folder / "noto_72.npz", images=images, rows=np.arange(3, dtype=np.int32))
    parts = [load_emoji(split, DataConfig("emoji", n_test=1)) for split in ("train", "test")]
    found = {d.caption(i): d[i][0] for d in parts for i in range(len(d))}
    assert set(found) == {"grinning face", "waving hand"}
    assert found["grinning face"][:, 5, 5].tolist() == [200, 100, 0]
    assert found["waving hand"][:, 5, 5].tolist() == [255, 255, 255]  # clear is white
    assert found["waving hand"][:, 5, 30].tolist() == [127, 127, 127]  # half clear is grey


def test_without_emoji_the_error_says_what_was_found(tmp_path, home):
    with pytest.raises(ValueError, match="unpack a published set"):
        load_emoji("train", DataConfig("emoji"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "hello.png").write_bytes(png())
    with pytest.raises(ValueError, match="of 1 files 0 are PNG"):
        load_emoji("train", DataConfig("emoji", folder=str(tmp_path / "a")))
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"no whole \.zip or \.tar"):
        load_emoji("train", DataConfig("emoji", folder=str(tmp_path / "b.zip")))
