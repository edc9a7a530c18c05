"""Every public entry, given what it cannot use: a clear error, never another one, never silence.

A row of the table is a call, and what is put for its dots, case by case; all are Python
expressions over the names of `world`. The first case of each row is in the fast run.
"""

import re
import sys
from io import BytesIO

import pytest
import torch
from helpers import own_images
from PIL import Image

from minidalle.config import get_config

SIZES = [
    "data.n_train=40", "data.n_test=8", "train_dvae.batch_size=16", "dvae.vocab_size=256",
    "dalle.image_vocab=256", "tokenizer.vocab_size=300", "dalle.text_vocab=300",
    "clip.vocab_size=302", "dvae.n_hid=8", "dvae.n_init=8", "dalle.n_layers=2", "dalle.n_heads=2",
    "dalle.head_dim=8", "clip.vision_width=12", "clip.vision_layers=1", "clip.text_width=12",
    "clip.text_layers=1",
]  # fmt: skip

TABLE = r"""
get_config(…) : 'tiny'; ''; None; 3; 'toy', 'dalle.n_layers=2'
get_config('toy', ['…']) : dalle; =; dalle=; dalle.=; .n_layers=2; dalle.n_layers; dalle.layers=2
get_config('toy', ['dalle.…']) : n_layers=two; n_layers=; n_layers=2.5; n_layers=0; n_layers=-1
get_config('toy', ['dalle.…']) : n_layers=nan; n_layers=2=3; width=8; kernel=4; attention=magic
get_config('toy', ['dalle.…']) : grid=9; image_vocab=7; text_vocab=7; text_len=1; text_len=10**5
get_config('toy', ['dalle.…']) : text_weight=2; text_weight=nan; __class__=int; caption_dropout=-1
get_config('toy', ['dvae.…']) : image_size=31; n_pools=40; n_pools=99999999999; tau=0; beta=-1
get_config('toy', ['data.…']) : name=imagenet; augment=maybe; image_size=64; n_test=0; max_aspect=-1
get_config('toy', ['tokenizer.…']) : vocab_size=1e9999; dropout=1.5; vocab_size=255; dropout=none
get_config('toy', ['clip.…']) : vision_heads=5; patch_size=5; vocab_size=300; context_length=3
get_config('toy', ['train_dalle.…']) : lr=0; lr=inf; betas=0.9; betas=(0.9,); betas=(0.9, 1.5)
get_config('toy', ['train_dalle.…']) : betas=(1, 2, 3); precision=float8; accumulate=5; keep=-1
get_config('toy', ['train_dalle.…']) : ema_decay=1.5; halve_at=(-5,); halve_at=(1.7,); steps=0
get_config('toy', ['…']) : train_dalle=1; preset=x; seed=x; seed=-1; train_clip.accumulate=2
get_config('toy', ['train_dalle.betas=…']) : __import__("os"); ((; [[[[; {1: 2}; lambda: 0; 9**9**9
from_json('…') : {}; null; 3; "toy"; [[1]]; {"preset": "toy"}; {"preset": 1}; {"a": {"b": NaN}}
from_json(text_of_config.…) : replace('"grid": 8', '"grid": 8.5'); replace('32', '"32"')
from_json(text_of_config.…) : replace('{', '[')
from_json(text_of_config.…) : replace('"n_train": 40', '"n_train": -1'); replace('}', '', 1)
from_json(text_of_config.…) : replace('"grid"', '"grit"'); replace('false', '0')
normalise(…) : None; b'red'; 3; ['red']
BPETokenizer.train(…) : 'one caption', 300; [None], 300; [3], 300; ['a'], 255; ['a'], -1
BPETokenizer.train(…) : ['a'], 10**9; b'red', 300
tokenizer.encode(…) : None; b'red'; ['red']; 'red', dropout=-0.1; 'red', 1.1; 'red', nan
tokenizer.encode_batch(…) : 'red', 8; ['red'], 0; ['red'], -1; [None], 8; ['red'], 8, dropout=2
tokenizer.decode(…) : [10**9]; [-2]; [300]
tokenizer.save(…) : folder
BPETokenizer(…) : [], []; [b'a', b'a'], []; tokenizer.vocab, [(b'zz', b'zz')]
BPETokenizer.load(…) : missing; folder; empty_file; binary_file; json_file; deep_json
CLIPTokenizer.load(…) : missing; folder; empty_file; binary_file; json_file
row_mask(…) : 0, 4; 4, 0; -1, 4
column_mask(…) : 4, -1; 0, 4
conv_mask(…) : 4, 4, 0; 4, 4, 2; 4, 4, -3; 0, 0, 1
causal_mask(…) : -1; 0
layer_mask(…, 4, 4, 1) : 'diagonal'; None
layer_kinds(…) : 0; -1
attend(qkv, qkv, qkv, …) : 'row', 4, 2, 1, method='magic'; 'diagonal', 4, 2, 1
dvae.logits(…) : images[0]; images[:, :1]; images[:, :, :15]; (images * 255).byte(); images.long()
dvae.tokens(…) : images[0]; images[:, :2]
dvae.decode(…) : cells.float(); cells[0]; cells - 1000; cells + 256
dvae.loss({'images': …}, 0) : images[:, :1]; images[0]
gumbel_softmax(torch.zeros(1, 4, 2, 2), …) : 0; -1; nan
dalle(…) : text[:, 1:], image; text, image[:, 1:]; text[0], image[0]
dalle(…) : text[:1], image; text.float(), image
dalle.loss({'text': text, 'tokens': …}, 0) : image[:, 1:]; image.float()
dalle.log_likelihood(text, …) : image[:, :5]; image[0]
sample(dalle, …) : [1, 2], 0; [1, 2], -1; [10**6], 1; [-5], 1; [1] * 40, 1
sample(dalle, …) : text, 5; text[0].float(), 1
sample(dalle, [1], 1, …) : temperature=-1; temperature=nan; temperature=inf; top_k=0; top_k=-3
sample(dalle, [1], 1, …) : top_p=0; top_p=1.1; top_p=nan; guidance=nan; guidance=inf; top_p=-1
sample(dalle, [1], 1, prompt=…) : image[0].float(); torch.zeros(100).long(); image[0][:4] + 10**6
sample(dalle, [1], 1, prompt=…) : image[0][:4] - 10**6; torch.zeros(2, 2, 2).long()
sample(dalle, [1], 1, prompt=…) : -1 - image[:1, :4]
pipeline.generate(…) : ''; '   '; None; 'red ' * 100; 'red', batch_size=0; 'red', candidates=-1
pipeline.generate('red', …) : n=0; n=-1; n=4, candidates=2; temperature=-1; top_k=0; guidance=nan
Pipeline(tokenizer, dvae, dalle).generate(…) : 'red', n=1, candidates=2
Pipeline.load(…) : missing; folder; binary_file
clip.encode_image(…) : images[0]; images[:, :1]; images[:, :, :16]; (images * 255).byte()
clip.encode_text(…) : text[0]; torch.zeros(1, 400).long()
pack_text(…, config.clip) : torch.zeros(1, 400).long(); text + 10**6; text[0]
wilson(…) : 0.5, 0; 2, 10; -1, 10; nan, 10
best_of(torch.zeros(2, 3), torch.zeros(2, 3), …) : 0; 4; -1
best_of(…, torch.zeros(2, 3), 1) : torch.full((2, 3), nan)
moments(…) : torch.zeros(1, 4); torch.zeros(4)
inception_score(…) : torch.ones(4, 3); torch.full((4, 3), nan)
gaussian_blur(…) : images, -1
Judge.load(…) : missing; folder
Judge({'shape': ('a', 'b')}, …) : image_size=30
load(config, …) : 'validation'; None; 'Train'
load(replace(config, data=replace(config.data, …)), 'train') : name='imagenet'; image_size=64
load(own(…), 'train') : missing; folder; binary_file; ''; '/proc/self/mem'
load(own(…), 'train') : 'pipe:touch x'; 'https://host/{0..1}.tar'; 'http:'; 'PIPE:x'
shapes.draw(…) : 0; -1; 4, 0, 'validation'
batches(train_set, config, …) : 'judge'; 'dalle'; 'clip'; 'dalle', tokenizer=tokenizer
batches(train_set, config, 'dvae', …) : rank=1, world=1; rank=-1; world=10**6
read_model(…) : missing; folder; binary_file
save_model(…, {}, '{}') : binary_file; binary_file / 'x'
fit(dvae, forever, config.train_dvae, …) : binary_file; binary_file / 'x'
fit(dvae, forever, config.train_dvae, folder / 'a', …) : device='gpu'; seed='x'; device='cuda:99'
fit(dvae, …, config.train_dvae, folder / 'b') : lambda start: iter([]); lambda start: iter([None])
fit(dvae, …, config.train_dvae, folder / 'c') : lambda start: iter([{}])
fit(dvae, forever, replace(config.train_dvae, …), folder / 'd') : accumulate=3; precision='float8'
fit(…, forever, config.train_dvae, folder / 'e') : torch.nn.Identity()
decode_image(…) : missing; folder; empty_file; binary_file; b''; b'\x89PNG'; b'<svg/>'
decode_image(…) : own_images.bomb()
decode_image(made(…)) : cut=200; form='jpeg', cut=300; form='gif', cut=90; form='tiff', cut=120
decode_image(made(…)) : form='webp', cut=30; form='bmp', cut=99; form='eps'; form='pdf'; form='ico'
decode_image(made(…)) : mode='F', form='tiff'; mode='I', form='tiff'; form='icns'; form='jpeg2000'
decode_image(made().replace(…)) : b'IDAT', b'IDAX'; b'IHDR', b'IHDX'
decode_image(made(form='ppm').replace(…)) : b'40 30', b'99 99'; b'40 30', b'-1 30'
decode_image(made(form='ppm').replace(…)) : b'255', b'999999'
decode_image(made(form='gif').replace(…)) : b'GIF8', b'GIF9'
read_caption(…) : None; b''; b' \n\t '; b'\xff\xfe'; 'grün'.encode('latin-1'); b'ab', 3
"""
CASES = [
    pytest.param(template.replace("…", case), marks=[] if i == 0 else [pytest.mark.slow])
    for template, cases in (line.split(" : ") for line in TABLE.strip().splitlines())
    for i, case in enumerate(cases.split("; "))
]
# The words of Python's and torch's own complaints, which tell a caller nothing.
STRANGERS = ("torch.cat", "range()", "not enough values", "Expected tensor", "in self", "__init__")
TELLING = {"got", "must", "unknown", "not", "missing", "empty", "outside", "ended", "lacks"}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Small models with random weights, odd files, and the functions that the table calls."""
    import minidalle.data.shapes
    import minidalle.evaluation.judge
    import minidalle.evaluation.metrics
    import minidalle.published.clip_tokenizer
    from minidalle import stages  # noqa: F401  imports the street

    names = {"nan": float("nan"), "inf": float("inf"), "torch": torch, "own_images": own_images}
    for module in [name for name in sys.modules if name.startswith("minidalle.")]:
        found = vars(sys.modules[module])
        names |= {k: v for k, v in found.items() if not k.startswith("_")}
    names["shapes"], names["load"] = minidalle.data.shapes, minidalle.data.load
    names["batches"] = minidalle.data.batches  # not those of lookalikes
    root = tmp_path_factory.mktemp("world")
    names["folder"], names["missing"] = root / "folder", root / "missing"
    names["folder"].mkdir()
    for name, content in {
        "empty_file": b"", "binary_file": bytes(range(256)) * 8, "json_file": b'{"a": [1, 2]}',
        "deep_json": b"[" * 200_000,
    }.items():  # fmt: skip
        names[name] = root / name
        names[name].write_bytes(content)
    names["config"] = config = get_config("toy", SIZES)
    own = names["replace"]
    names["own"] = lambda path: own(config, data=own(config.data, name="folder", folder=str(path)))
    return names | _models(config) | {"text_of_config": names["to_json"](config), "made": _made}


def _made(mode: str = "RGB", form: str = "png", cut: int | None = None) -> bytes:
    """Return the bytes of an image of chance, or the first `cut` of them."""
    file, noise = BytesIO(), torch.randint(256, (30, 40, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).convert("L" if mode in "FI" else mode).convert(mode).save(
        file, form
    )
    return file.getvalue()[:cut]


def _models(config):
    from minidalle.clip import CLIP
    from minidalle.dalle import DALLE
    from minidalle.data import load
    from minidalle.dvae import DiscreteVAE
    from minidalle.generate import Pipeline
    from minidalle.tokenizer import BPETokenizer

    train_set = load(config, "train")
    tokenizer = BPETokenizer.train([train_set[i][1] for i in range(40)], 300)
    dvae, dalle, clip = DiscreteVAE(config.dvae), DALLE(config.dalle), CLIP(config.clip)
    clip.tokenizer = tokenizer
    text = tokenizer.encode_batch(["a red circle", "two"], config.dalle.text_len - 1)
    image = torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(0))

    def forever(start):
        while True:
            yield {"images": torch.rand(16, 3, 32, 32)}

    return {
        "train_set": train_set, "tokenizer": tokenizer, "dvae": dvae, "dalle": dalle, "clip": clip,
        "pipeline": Pipeline(tokenizer, dvae, dalle, clip), "text": text, "image": image,
        "cells": image.view(2, 8, 8), "images": torch.rand(2, 3, 32, 32), "forever": forever,
        "qkv": torch.zeros(1, 1, 8, 4),
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_of_the_caller_is_a_clear_error(world, case):
    with pytest.raises((ValueError, OSError, world["Unusable"])) as caught:
        eval(case, dict(world))
    message = str(caught.value)
    assert len(message) < 1500 and not any(words in message for words in STRANGERS), message
    words, said = (set(re.findall(r"\w+", text.lower())) for text in (case, message))
    if caught.type is not world["Unusable"]:
        assert len(message) > 20 and (words | TELLING) & said, message


ODD_BUT_RIGHT = """
tokenizer.encode('') == []
tokenizer.encode('  ') == tokenizer.encode('')
tokenizer.decode([]) == ''
tokenizer.encode_batch([], 8).shape == (0, 8)
tokenizer.encode_batch(['red ' * 10**4], 8).shape == (1, 8)
tokenizer.decode(tokenizer.encode('\\x00\\x1b[31m')) == normalise('\\x00\\x1b[31m')
tokenizer.decode(tokenizer.encode('\\u202eабв 🎈')) == normalise('\\u202eабв 🎈')
sample(dalle, [], 1).shape == (1, 8, 8)
sample(dalle, [1], 1, top_k=10**9).shape == (1, 8, 8)
sample(dalle, [1], 1, top_p=1.0).shape == (1, 8, 8)
sample(dalle, [1], 2, temperature=0).unique(dim=0).shape == (1, 8, 8)
sample(dalle, [1], 1, prompt=image[0]).flatten().equal(image[0])
pipeline.generate('\\x07 ŘED ☃', n=2)[0].shape == (2, 3, 32, 32)
get_config('toy', []) == get_config('toy')
get_config('toy', ['dvae.min_log_b=none']).dvae.min_log_b is None
get_config('toy', [' dalle.n_layers = 1_0 ']).dalle.n_layers == 10
half_cosine(1, 2, -5, 10) == 1
half_cosine(1, 2, 10**12, 10) == 2
"""


@pytest.mark.parametrize("case", ODD_BUT_RIGHT.strip().splitlines())
def test_odd_input_that_is_right_works(world, case):
    assert eval(case, dict(world))
