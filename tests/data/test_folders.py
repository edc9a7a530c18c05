"""Your own images in a folder: what is read, what is skipped, and what is said about it."""

import dataclasses
import io
import os
import warnings

import numpy as np
import pytest
import torch
from helpers.own_images import BROKEN, good_pairs, png, write_folder
from PIL import Image

from minidalle.config import DataConfig
from minidalle.data import captioned
from minidalle.data.captioned import Unusable
from minidalle.data.folders import in_split, load_folder, name_hash
from minidalle.data.images import decode_image

DATA = DataConfig("folder", image_size=16, n_test=5)


def pairs_of(dataset):
    return {dataset.caption(i): dataset[i][0] for i in range(len(dataset))}


def load_both(root, data=DATA):
    return load_folder(root, "train", data), load_folder(root, "test", data)


def test_same_named_txt_captions_are_read_and_split_once(tmp_path):
    root = write_folder(tmp_path / "a", good_pairs(30)) and write_folder(
        tmp_path / "a" / "deeper", {"x": (png((0, 255, 0)), b"a \xc3\xa9 caption\nanother one")}
    )
    train, test = (pairs_of(part) for part in load_both(root.parent))
    assert len(train) + len(test) == 32 and not set(train) & set(test)
    assert 1 <= len(test) <= 10
    both = train | test
    assert {"image number 7", "a é caption", "another one"} <= set(both)
    assert both["image number 7"].shape == (3, 16, 16)
    assert both["image number 7"][:, 8, 8].tolist() == [7, 0, 248]
    assert ("a é caption" in train) == ("another one" in train)  # one image, one split


@pytest.mark.parametrize(
    "name, text",
    [
        ("captions.tsv", 'file\tcaption\none.png\ta "quoted" dog\nsub/two.png\ta cat, asleep\n'),
        ("captions.tsv", 'one.png\ta "quoted" dog\nsub/two.png\ta cat, asleep\n'),
        (
            "captions.csv",
            'caption,image\n"a ""quoted"" dog",one.png\n"a cat, asleep",sub/two.png\n',
        ),
        (
            "captions.csv",
            '\ufefffile,caption\r\none.png,"a ""quoted"" dog"\r\nsub/two.png,"a cat, asleep"\r\n',
        ),
    ],
)
def test_tables_of_captions_are_read(tmp_path, name, text):
    write_folder(tmp_path, {"one": (png((9, 9, 9)), None)})
    write_folder(tmp_path / "sub", {"two": (png((99, 9, 9)), None)})
    (tmp_path / name).write_text(text, encoding="utf-8")
    train, test = (pairs_of(part) for part in load_both(tmp_path))
    both = train | test
    assert set(both) == {'a "quoted" dog', "a cat, asleep"}
    assert both["a cat, asleep"][:, 0, 0].tolist() == [99, 9, 9]


def test_a_table_with_bad_rows_loses_only_those(tmp_path):
    write_folder(tmp_path, {f"p{i}": (png(), None) for i in range(20)})
    rows = [f"p{i}.png\tcaption {i}".encode() for i in range(20)]
    rows += [b"gone.png\tnot there", b"p1.png\t", b"p2.png\t\xff\xfe", b"only one cell", b""]
    (tmp_path / "captions.tsv").write_bytes(b"\n".join(rows))
    with pytest.warns(UserWarning, match="of 24 pairs, skipped 4") as seen:
        train, test = load_both(tmp_path)
    text = str(seen[0].message)
    for part in ("1 missing image (gone.png)", "1 empty caption (p1.png)", "1 no caption"):
        assert part in text
    assert "1 caption that is not UTF-8 (p2.png)" in text
    assert len(train) + len(test) == 20


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pair_is_skipped_counted_and_named(tmp_path, name):
    write_folder(tmp_path, good_pairs(20) | {name: BROKEN[name]})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train, test = load_both(tmp_path)
        read = [part[i] for part in (train, test) for i in range(len(part))]
    assert len(read) in (20, 21) and len({caption for _, caption in read}) == 20
    assert any(f"1 {BROKEN[name][2]} ({name}.png)" in str(w.message) for w in seen)


def test_a_pair_that_breaks_late_is_replaced_by_the_next(tmp_path):
    write_folder(tmp_path, good_pairs(12) | {"known": BROKEN["empty"]})
    with pytest.warns(UserWarning, match="known.png"):
        train = load_folder(tmp_path, "train", DATA)
    (tmp_path / train.files[4]).write_bytes(png()[:60])  # the header stays sound
    with pytest.warns(UserWarning, match=f"1 broken image \\({train.files[4]}\\)"):
        image, caption = train[4]
    assert caption == train.caption(5) and torch.equal(image, train[5][0])


def test_filters_leave_out_but_do_not_blame(tmp_path):
    pairs = good_pairs(3) | {
        "wide": (png(size=(81, 40)), b"a wide image"),
        "tall": (png(size=(40, 81)), b"a tall image"),
        "exact": (png(size=(80, 40)), b"twice as wide"),
        "short": (png(), b"dog"),
    }
    write_folder(tmp_path, pairs)
    data = dataclasses.replace(DATA, min_caption=5, max_aspect=2.0)
    with pytest.warns(UserWarning, match="of 7 pairs, left out by the options 3") as seen:
        train, test = load_both(tmp_path, data)
    assert len(train) + len(test) == 4 and "twice as wide" in pairs_of(train) | pairs_of(test)
    assert "1 caption under 5 characters (short.png)" in str(seen[0].message)
    assert "2 longer than 2 times its width or height (tall.png, wide.png)" in str(seen[0].message)


def test_too_many_bad_pairs_stop_with_an_error(tmp_path):
    bad = {f"bad{i:02d}": (b"", b"a caption") for i in range(11)}
    write_folder(tmp_path, good_pairs(30) | bad)
    with pytest.raises(ValueError, match=r"more than 10% .* skipped 11: 11 not an image"):
        load_folder(tmp_path, "train", DATA)


def test_many_bad_pairs_found_late_stop_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(captioned, "FEW_BAD", 2)
    write_folder(tmp_path, good_pairs(20))
    train = load_folder(tmp_path, "train", DATA)
    for file in train.files[:3]:
        (tmp_path / file).write_bytes(b"gone")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="mend or remove"):
        train[0]


@pytest.mark.parametrize(
    "files, found",
    [
        ([], "no files"),
        (["notes.md", "a.mp4", "b.mp4"], "2 .mp4, 1 .md"),
        (["a.txt", "README"], "1 without ending, 1 .txt"),
        (["a.jpg"], "no caption"),
    ],
)
def test_a_folder_without_a_usable_pair_says_what_it_found(tmp_path, files, found):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=found):
        load_folder(tmp_path, "train", DATA)


def test_train_and_test_folders_are_the_split(tmp_path):
    write_folder(tmp_path / "train", good_pairs(6))
    with pytest.raises(ValueError, match="none called 'test'"):
        load_folder(tmp_path, "test", DATA)
    write_folder(tmp_path / "test", {"t": (png(), b"the test image")})
    train, test = load_both(tmp_path)
    assert len(train) == 6 and list(pairs_of(test)) == ["the test image"]


def test_the_split_holds_out_about_n_test_by_name_alone():
    hashes = np.array([name_hash(f"{i}.png") for i in range(50_000)])
    test = in_split(hashes, "test", n_test=1000)
    assert 900 < test.sum() < 1100
    assert np.array_equal(test, ~in_split(hashes, "train", n_test=1000))
    assert in_split(hashes, "test", n_test=40_000).sum() < 5300  # a tenth at most


def test_the_fingerprint_follows_the_files(tmp_path):
    write_folder(tmp_path, good_pairs(4))
    train = load_folder(tmp_path, "train", DATA)
    before = train.fingerprint()
    assert before == load_folder(tmp_path, "train", DATA).fingerprint()
    (tmp_path / train.files[0]).write_bytes(png((1, 2, 3), size=(50, 50)))
    changed = train.fingerprint()
    (tmp_path / train.files[0]).unlink()
    assert len({before, changed, train.fingerprint()}) == 3


@pytest.mark.parametrize(
    "mode, colour, want",
    [
        ("RGB", (10, 20, 30), [10, 20, 30]),
        ("L", 77, [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),  # clear is white
        ("RGBA", (0, 0, 0, 128), [127, 127, 127]),
        ("LA", (0, 0), [255, 255, 255]),
        ("I;16", 65535 // 2, [127, 127, 127]),
    ],
)
def test_every_kind_of_image_becomes_rgb(mode, colour, want):
    image = decode_image(png(colour, (6, 4), mode))
    assert image.shape == (3, 4, 6) and image.dtype == torch.uint8
    assert (image[:, 0, 0].int() - torch.tensor(want)).abs().max() <= 1


def test_an_image_taken_sideways_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert decode_image(tmp_path / "a.jpg").shape == (3, 8, 4)


def test_bad_rows_are_counted_though_they_name_one_file(tmp_path):
    write_folder(tmp_path, {"p": (png(), None)})
    rows = [f"p.png\tcaption {i}" for i in range(200)] + ["gone.png\tnot there"] * 3000
    (tmp_path / "captions.tsv").write_text("\n".join(rows))
    message = r"of 3200 pairs, skipped 3000: 3000 missing image \(gone.png\); mend"
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path, "train", DATA)


def test_a_bad_pair_counts_once_however_often_it_is_met(tmp_path, monkeypatch):
    monkeypatch.setattr(captioned, "FEW_BAD", 1)
    write_folder(tmp_path, good_pairs(12))
    train = load_folder(tmp_path, "train", dataclasses.replace(DATA, n_test=1))
    (tmp_path / train.files[0]).write_bytes(b"gone")
    with pytest.warns(UserWarning):
        for _ in range(5):
            train[0]
    assert "skipped 1:" in train.tally.line()


@pytest.mark.parametrize("name, tab", [("captions.tsv", "\t"), ("captions.csv", ",")])
def test_a_row_ends_at_its_line_break_only(tmp_path, name, tab):
    write_folder(tmp_path, {"p": (png(), None)})
    breaks = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
    text = "\r\n".join(f"p.png{tab}a dog{c}on grass {i}" for i, c in enumerate(breaks))
    (tmp_path / name).write_bytes(text.encode())
    pairs = load_folder(tmp_path, "test", DATA).captions
    assert pairs == [f"a dog on grass {i}" for i in range(len(breaks))]


def test_text_after_an_extra_tab_is_no_silent_loss(tmp_path):
    write_folder(tmp_path, {"p": (png(), None)})
    rows = ["p.png\tfine", "p.png\ta dog\tand a cat", "p.png\talso fine\t"]
    (tmp_path / "captions.tsv").write_text("\n".join(rows))
    with pytest.warns(UserWarning, match=r"skipped 1: 1 more cells than columns \(p.png, line 2\)"):
        assert load_folder(tmp_path, "test", DATA).captions == ["fine", "also fine"]


@pytest.mark.parametrize("rest", ["", 'q.png,"a cat"\nr.png,a bird\n'])
def test_a_quote_that_is_not_closed_is_named(tmp_path, rest):
    rows = 'p.png,"a small ""dog"""\np.png,"a dog\n' + rest
    (tmp_path / "captions.csv").write_text(rows)
    with pytest.raises(ValueError, match=r"captions.csv, row from line 2: .*quote"):
        load_folder(tmp_path, "train", DATA)


def test_a_table_names_no_path_outside_its_folder(tmp_path):
    write_folder(tmp_path, {"secret": (png(), None)})
    root = write_folder(tmp_path / "data", {"p": (png(), None)})
    rows = ["p.png\tfine", "../secret.png\tone", f"{tmp_path / 'secret.png'}\ttwo"]
    (root / "captions.tsv").write_text("\n".join(rows))
    with pytest.warns(UserWarning, match="skipped 2: 2 path outside the folder"):
        assert load_folder(root, "test", DATA).captions == ["fine"]


def test_what_is_no_file_does_not_stop_the_reading(tmp_path):
    write_folder(tmp_path, good_pairs(3))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.warns(UserWarning, match=r"skipped 1: 1 no caption \(pipe.png\)"):
        assert len(load_folder(tmp_path, "train", DATA)) == 2
    rows = "image_000.png\tfine\npipe.png\ta pipe\nfolder.png\ta folder"
    (tmp_path / "captions.tsv").write_text(rows)
    with pytest.warns(UserWarning, match=r"skipped 2: 2 not a file \(pipe.png, folder.png\)"):
        assert load_folder(tmp_path, "test", DATA).captions == ["fine"]


def saved(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_a_tiff_of_32_bit_numbers_is_refused_not_guessed(kind):
    with pytest.raises(Unusable, match="32-bit"):
        decode_image(saved(np.full((4, 6), 0.5).astype(kind), format="tiff"))


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_16_bit_grey_is_turned_upright_and_clear_parts_are_white(form):
    grey = np.full((4, 8), 20_000, np.uint16)
    grey[:, 4:] = 40_000
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image = decode_image(saved(grey, format=form, exif=exif))
    assert image.shape == (3, 8, 4)
    assert image[0, [0, -1], 0].tolist() == [78, 156]  # of 255; the left is now the top
    if form == "png":
        image = decode_image(saved(grey, format=form, transparency=40_000))
        assert image[0, 0, [0, -1]].tolist() == [78, 255]
