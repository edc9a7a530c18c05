"""Emoji sets as they are published: folders, archives, arrays, lists of names."""

import csv
import io
import tarfile
import zipfile

import numpy as np
import pytest
from helpers.own_images import png

from minidalle.config import DataConfig
from minidalle.data.emoji import load_emoji


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An own data folder, and no other."""
    monkeypatch.setattr("minidalle.files.places", lambda: [tmp_path])
    return tmp_path


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
    parts = [load_emoji(split, config, 0) for split in ("train", "test")]
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
    parts = [load_emoji(split, DataConfig("emoji", n_test=1), 0) for split in ("train", "test")]
    found = {d.caption(i): d[i][0] for d in parts for i in range(len(d))}
    assert set(found) == {"grinning face", "waving hand"}
    assert found["grinning face"][:, 5, 5].tolist() == [200, 100, 0]
    assert found["waving hand"][:, 5, 5].tolist() == [255, 255, 255]  # clear is white
    assert found["waving hand"][:, 5, 30].tolist() == [127, 127, 127]  # half clear is grey


def test_without_emoji_the_error_says_what_was_found(tmp_path, home):
    with pytest.raises(ValueError, match="unpack a published set"):
        load_emoji("train", DataConfig("emoji"), 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "hello.png").write_bytes(png())
    with pytest.raises(ValueError, match="of 1 files none is called"):
        load_emoji("train", DataConfig("emoji", folder=str(tmp_path / "a")), 0)
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"no whole \.zip or \.tar"):
        load_emoji("train", DataConfig("emoji", folder=str(tmp_path / "b.zip")), 0)
