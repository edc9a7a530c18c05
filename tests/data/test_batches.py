"""Data sets and batches: loading by name, and batches that depend on (seed, update) alone."""

import itertools
import sys
import warnings

import numpy as np
import pytest
import torch
from helpers.own_images import good_pairs, png, write_folder, write_tar

from minidalle import data
from minidalle.config import STAGES, get_config
from minidalle.data import kept_tokens as token_cache
from minidalle.data.captioned import InMemory
from minidalle.data.kept_tokens import all_tokens, token_key

PAD = -1


class Letters:
    """A tokenizer that turns each letter into a number and drops letters by chance."""

    def encode_batch(self, texts, length, dropout=0.0, generator=None):
        out = torch.full((len(texts), length), PAD)
        for row, text in enumerate(texts):
            keep = torch.rand(len(text), generator=generator) >= dropout
            ids = [ord(c) for c, k in zip(text, keep, strict=True) if k][:length]
            out[row, : len(ids)] = torch.tensor(ids)
        return out


class MeanRed(torch.nn.Module):
    """A dVAE whose 2 x 2 tokens are the mean red of each quarter, times a weight."""

    def __init__(self, weight=255.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.seen = 0

    def tokens(self, images):
        self.seen += len(images)
        side = images.shape[-1] // 2
        return (torch.nn.functional.avg_pool2d(images[:, 0], side) * self.weight).round().long()


def red_images(n=20, size=8, split="train"):
    """Image i has red value i; its caption is 'image i'."""
    images = torch.zeros(n, 3, size, size, dtype=torch.uint8)
    images[:, 0] = torch.arange(n)[:, None, None]
    return InMemory(
        images, [f"image {i}" for i in range(n)], [{"n": str(i)} for i in range(n)], split
    )


def config_for(*overrides, n_batch=6, steps=10):
    train = [
        f"train_{s}.{f}" for s in STAGES[1:] for f in (f"batch_size={n_batch}", f"steps={steps}")
    ]
    sizes = ["data.name=folder", "dalle.text_len=32", "clip.context_length=34"]
    return get_config("toy", [*sizes, *train, *overrides])


def make(dataset, stage, config=None, **kinds):
    kinds = dict(tokenizer=Letters(), dvae=MeanRed()) | kinds
    return data.batches(dataset, config or config_for(), stage, **kinds)


def take(batches, start, n):
    return list(itertools.islice(batches(start), n))


def same(a, b):
    return all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
        for x, y in zip(a, b, strict=True)
    )


STAGE_KEYS = {"dvae": {"images"}, "dalle": {"text", "tokens"}, "clip": {"images", "text"}}


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_batch_has_what_its_stage_needs(stage):
    (batch,) = take(make(red_images(), stage), 0, 1)
    assert set(batch) == STAGE_KEYS[stage]
    if "images" in batch:
        assert batch["images"].shape == (6, 3, 8, 8) and batch["images"].dtype == torch.float32
        assert batch["images"].max() < 20 / 255
    if "tokens" in batch:
        assert batch["tokens"].shape == (6, 4) and batch["tokens"].dtype == torch.int64
    if "text" in batch:
        assert batch["text"].shape == (6, 31) and batch["text"].dtype == torch.int64


def test_text_images_and_tokens_of_a_row_belong_together():
    config = config_for("tokenizer.dropout=0")
    for stage in ("dalle", "clip"):
        for batch in take(make(red_images(), stage, config), 0, 4):
            numbers = [int("".join(map(chr, row[row >= 0])).split()[1]) for row in batch["text"]]
            if stage == "clip":
                assert (batch["images"][:, 0, 0, 0] * 255).round().tolist() == numbers
            else:
                assert batch["tokens"].tolist() == [[n] * 4 for n in numbers]


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("augment", ["true", "false"])
def test_a_resumed_run_sees_what_an_unbroken_one_sees(stage, augment):
    config = config_for(f"data.augment={augment}")
    walked = take(make(red_images(), stage, config), 0, 9)
    assert same(walked[5:], take(make(red_images(), stage, config), 5, 4))
    assert not same(walked, take(make(red_images(), stage, config, seed=1), 0, 9))


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("augment", ["true", "false"])
def test_ranks_see_the_rows_of_the_same_global_batch(stage, augment):
    config = config_for(f"data.augment={augment}")
    whole = take(make(red_images(), stage, config), 3, 2)
    for world in (2, 3, 4):
        for rank in range(world):
            part = take(make(red_images(), stage, config, rank=rank, world=world), 3, 2)
            assert same([{k: v[rank::world] for k, v in b.items()} for b in whole], part)


def test_dropout_is_for_training_with_the_transformer_only():
    config = config_for("tokenizer.dropout=0.5")

    def full(stage, split):
        text = take(make(red_images(split=split), stage, config), 0, 1)[0]["text"]
        return bool(((text >= 0).sum(1) >= len("image 1")).all())

    assert full("clip", "train") and full("dalle", "test") and not full("dalle", "train")


def test_crops_are_for_training_only():
    dataset = red_images(size=8)
    dataset.images[:, 1] = torch.arange(8)  # a ramp from left to right
    ramps = {}
    for split in ("train", "test"):
        dataset.split = split
        config = config_for("data.augment=true")
        images = torch.cat([b["images"] for b in take(make(dataset, "dvae", config), 0, 10)])
        ramps[split] = (images[:, 1, 0, 0] > images[:, 1, 0, -1]).float().mean()
    assert 0.25 < ramps["train"] < 0.75 and ramps["test"] == 0  # half of them flipped


def test_tokens_of_a_fixed_set_are_computed_once():
    dvae = MeanRed()
    take(make(red_images(), "dalle", dvae=dvae), 0, 40)
    assert dvae.seen == 20
    dvae = MeanRed()
    config = config_for(steps=2)  # 12 images of 20: not worth it
    take(make(red_images(), "dalle", config, dvae=dvae), 0, 2)
    assert dvae.seen == 12


def test_tokens_are_kept_on_disk_and_never_stale(tmp_path):
    def count(dataset=None, weight=255.0):
        dvae = MeanRed(weight)
        tokens = all_tokens(dataset or red_images(), dvae, tmp_path)
        return dvae.seen, tokens

    seen, tokens = count()
    assert seen == 20 and tokens[:, 0].tolist() == list(range(20))
    seen, again = count()
    assert seen == 0 and np.array_equal(tokens, again)
    seen, other = count(weight=510.0)
    assert seen == 20 and other[:, 0].tolist() == list(range(0, 40, 2))
    assert count()[0] == 20  # one file a split: the other dVAE's took its place
    changed = red_images()
    changed.images[3, 0, 0, 0] += 200
    assert count(changed)[0] == 20
    assert count(red_images(split="test"))[0] == 20 and count(changed)[0] == 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"text", "half", "other"])
def test_a_broken_file_of_tokens_is_made_again(tmp_path, damage):
    all_tokens(red_images(), MeanRed(), tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "other":
        np.save(path, np.zeros((3, 4), np.uint16))
    else:
        path.write_bytes(path.read_bytes()[:150] if damage == "half" else damage)
    dvae = MeanRed()
    assert all_tokens(red_images(), dvae, tmp_path)[:, 0].tolist() == list(range(20))
    assert dvae.seen == 20


def test_a_cache_that_cannot_be_written_costs_only_the_cache(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="image tokens are not kept"):
        tokens = all_tokens(red_images(), MeanRed(), tmp_path / "file")
    assert len(tokens) == 20


def test_the_key_depends_on_names_shapes_and_values_of_the_weights():
    def key(**weights):
        module = torch.nn.Module()
        for name, value in weights.items():
            setattr(module, name, torch.nn.Parameter(value))
        return token_key(module, red_images(4))

    a, b = torch.zeros(6), torch.ones(6)
    keys = [key(x=a), key(x=b), key(y=a), key(x=a.view(2, 3)), key(x=a.double()), key(x=a, y=b)]
    assert len(set(keys)) == 6 and key(x=a) == keys[0]


def folder_config(root, *overrides):
    more = ["data.image_size=8", "dvae.image_size=8", "dvae.n_pools=2", "dalle.grid=2"]
    more += ["clip.image_size=8", f"data.folder={root}", "data.n_test=3"]
    return config_for(*more, *overrides)


def write_shards(root):
    pairs = list(good_pairs(40).items())
    for k in range(4):
        write_tar(root / f"{k}.tar", dict(pairs[10 * k : 10 * k + 10]))


@pytest.mark.parametrize("kind", ["folder", "shards"])
@pytest.mark.parametrize("stage", STAGES[1:])
def test_threads_that_read_ahead_do_not_move_the_order(tmp_path, kind, stage):
    write_folder(tmp_path, good_pairs(40)) if kind == "folder" else write_shards(tmp_path)
    config = folder_config(tmp_path, "data.augment=true")
    dataset = data.load(config, "train")
    plain = take(make(dataset, stage, config, workers=0), 2, 12)
    assert same(plain, take(make(dataset, stage, config, workers=3), 2, 12))
    assert same(plain[4:], take(make(dataset, stage, config, workers=3), 6, 8))


def test_an_image_that_breaks_has_the_caption_and_tokens_of_the_next(tmp_path):
    write_folder(tmp_path, good_pairs(20))
    config = folder_config(tmp_path, "tokenizer.dropout=0")
    dataset = data.load(config, "train")
    broken = dataset.files[2]
    (tmp_path / broken).write_bytes(png()[:60])
    with pytest.warns(UserWarning, match=broken):
        seen = take(make(dataset, "dalle", config), 0, 6)
        direct = take(make(dataset, "clip", config), 0, 6)
    for a, b in zip(seen, direct, strict=True):
        assert torch.equal(a["text"], b["text"])
        red = (b["images"][:, 0, 0, 0] * 255).round().long()
        assert torch.equal(a["tokens"][:, 0], red)
    texts = {"".join(map(chr, row[row >= 0])) for batch in seen for row in batch["text"]}
    assert dataset.captions[2] not in texts


def test_images_from_urls_are_batched_with_a_warning(tmp_path):
    write_shards(tmp_path)
    config = folder_config(f"pipe:cat {tmp_path}/{{0..3}}.tar")
    stream, test = data.load(config, "train"), data.load(config, "test")
    assert len(test) == 3
    with pytest.warns(UserWarning, match="cannot be resumed exactly"):
        batches = make(stream, "clip", config, rank=1, world=2, workers=0)
    first = take(batches, 0, 5)
    assert all(b["images"].shape == (3, 3, 8, 8) and b["text"].shape == (3, 31) for b in first)
    assert same(first, take(batches, 0, 5)) and not same(first, take(batches, 5, 5))
    assert len(list(itertools.islice(data.captions(stream), 30))) == 30


def test_captions_of_a_fixed_set_come_once_each():
    assert list(data.captions(red_images(3))) == ["image 0", "image 1", "image 2"]


@pytest.mark.parametrize("split", ["train", "test", "held_out"])
def test_the_toy_world_is_loaded_by_name(split):
    dataset = data.load(get_config("toy", ["data.n_train=7", "data.n_test=5"]), split)
    assert len(dataset) == (7 if split == "train" else 5)
    image, caption = dataset[-1]
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and caption
    assert set(dataset.attributes(0)) >= {"shape", "colour", "background"}
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize(
    "overrides, split, message",
    [
        (["data.name=nothing"], "train", "data.name='nothing' is unknown; choose from shapes"),
        ([], "valid", "must be one of train, test, held_out, got 'valid'"),
        (["data.name=cifar"], "held_out", "must be one of train, test, got"),
        (["data.name=folder"], "train", "data.folder='' is not a folder; .* --data FOLDER"),
        (["data.name=folder", "data.folder=/no/where"], "train", "'/no/where' is not a folder"),
        (["data.name=folder", "data.folder=http://a/b.tar"], "train", "at least two"),
    ],
)
def test_a_data_set_that_cannot_be_loaded_is_named(overrides, split, message):
    with pytest.raises(ValueError, match=message):
        data.load(get_config("toy", overrides), split)


def test_the_only_image_of_a_folder_is_not_enough(tmp_path):
    write_folder(tmp_path, good_pairs(1))
    with pytest.raises(ValueError, match="left for 'train': add more images"):
        data.load(folder_config(tmp_path), "train")


def test_a_token_too_large_for_the_cache_is_refused():
    with pytest.raises(ValueError, match="does not fit the cache"):
        token_cache.encode(MeanRed(1e7), red_images().images)


def test_images_are_encoded_a_few_at_a_time(monkeypatch):
    images, sizes = red_images().images, []

    class Counting(MeanRed):
        def tokens(self, images):
            sizes.append(len(images))
            return super().tokens(images)

    want = token_cache.encode(Counting(), images)
    monkeypatch.setattr(token_cache, "PIXELS", 3 * 8 * 8)
    assert torch.equal(token_cache.encode(Counting(), images), want)
    assert sizes == [20, 3, 3, 3, 3, 3, 3, 2]


def test_reading_stops_with_its_iterator(tmp_path):
    write_folder(tmp_path, good_pairs(20))
    config = folder_config(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iterator = make(data.load(config, "train"), "dvae", config, workers=2)(0)
        next(iterator)
        iterator.close()


def test_captions_that_are_cut_are_counted_and_said():
    dataset = red_images(30)
    dataset.captions[3:5] = ["x" * 32, "x" * 31]  # text_len is 32: one place is start-of-text
    line = data.cut_captions(dataset, Letters(), config_for())
    assert line == "1 of 30 captions is longer than 31 tokens (dalle.text_len) and is cut"
    with pytest.warns(UserWarning, match="1 of 30 captions is longer than 31"):
        make(dataset, "dalle")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(red_images(), "dalle")
        make(dataset, "dvae")
        make(dataset, "dalle", rank=1, world=2)  # said once


def test_of_many_captions_some_are_looked_at(monkeypatch):
    dataset = red_images(250)
    dataset.captions[100:200] = ["x" * 40] * 100
    monkeypatch.setattr(sys.modules["minidalle.data.batches"], "MANY", 50)
    line = data.cut_captions(dataset, Letters(), config_for())
    assert line.startswith("20 of 50 captions are longer than 31 tokens")
