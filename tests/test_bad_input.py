"""Every public entry, given what it cannot use: a clear error, never another one, never silence.

Each line of a table is one case, a Python expression over the names of `world`.
"""

import shlex
import sys

import pytest
import torch

from minidalle.cli import main
from minidalle.config import get_config, to_json
from minidalle.files import save_model

SIZES = [
    "data.n_train=40", "data.n_test=8", "train_dvae.batch_size=16", "dvae.vocab_size=256",
    "dalle.image_vocab=256", "tokenizer.vocab_size=300", "dalle.text_vocab=300",
    "clip.vocab_size=302", "dvae.n_hid=8", "dvae.n_init=8", "dalle.n_layers=2", "dalle.n_heads=2",
    "dalle.head_dim=8", "clip.vision_width=12", "clip.vision_layers=1", "clip.text_width=12",
    "clip.text_layers=1",
]  # fmt: skip

TABLES = {
    "config": """
get_config('tiny')
get_config('')
get_config(None)
get_config(3)
get_config('toy', ['dalle'])
get_config('toy', ['='])
get_config('toy', ['dalle='])
get_config('toy', ['dalle.='])
get_config('toy', ['.n_layers=2'])
get_config('toy', ['dalle.n_layers'])
get_config('toy', ['dalle.layers=2'])
get_config('toy', ['dalle.n_layers='])
get_config('toy', ['dalle.n_layers=two'])
get_config('toy', ['dalle.n_layers=2.5'])
get_config('toy', ['dalle.n_layers=0'])
get_config('toy', ['dalle.n_layers=-1'])
get_config('toy', ['dalle.n_layers=nan'])
get_config('toy', ['dalle.n_layers=2=3'])
get_config('toy', ['dalle.width=8'])
get_config('toy', ['dalle.kernel=4'])
get_config('toy', ['dalle.attention=magic'])
get_config('toy', ['dalle.grid=9'])
get_config('toy', ['dalle.image_vocab=7'])
get_config('toy', ['dalle.text_vocab=7'])
get_config('toy', ['dalle.text_weight=2'])
get_config('toy', ['dalle.text_weight=nan'])
get_config('toy', ['dalle.__class__=int'])
get_config('toy', ['dvae.image_size=31'])
get_config('toy', ['dvae.n_pools=40'])
get_config('toy', ['dvae.n_pools=99999999999'])
get_config('toy', ['dvae.tau=0'])
get_config('toy', ['dvae.beta=-1'])
get_config('toy', ['data.name=imagenet'])
get_config('toy', ['data.augment=maybe'])
get_config('toy', ['data.image_size=64'])
get_config('toy', ['tokenizer.vocab_size=1e9999'])
get_config('toy', ['tokenizer.dropout=1.5'])
get_config('toy', ['clip.vision_heads=5'])
get_config('toy', ['clip.patch_size=5'])
get_config('toy', ['clip.vocab_size=300'])
get_config('toy', ['clip.context_length=3'])
get_config('toy', ['train_dalle.lr=0'])
get_config('toy', ['train_dalle.lr=inf'])
get_config('toy', ['train_dalle.betas=0.9'])
get_config('toy', ['train_dalle.betas=(0.9,)'])
get_config('toy', ['train_dalle.betas=(0.9, 1.5)'])
get_config('toy', ['train_dalle.betas=__import__("os")'])
get_config('toy', ['train_dalle.precision=float8'])
get_config('toy', ['train_dalle.accumulate=5'])
get_config('toy', ['train_dalle.ema_decay=1.5'])
get_config('toy', ['train_dalle.halve_at=(-5,)'])
get_config('toy', ['train_dalle=1'])
get_config('toy', ['preset=x'])
get_config('toy', ['seed=x'])
get_config('toy', ['seed=-1'])
get_config('toy', 'dalle.n_layers=2')
""",
    "tokenizer": """
normalise(None)
normalise(b'red')
normalise(3)
BPETokenizer.train('one caption', 300)
BPETokenizer.train([None], 300)
BPETokenizer.train([3], 300)
BPETokenizer.train(['a'], 255)
BPETokenizer.train(['a'], -1)
BPETokenizer.train(['a'], 10**9)
tokenizer.encode(None)
tokenizer.encode(b'red')
tokenizer.encode(['red'])
tokenizer.encode('red', dropout=-0.1)
tokenizer.encode('red', dropout=1.1)
tokenizer.encode('red', dropout=nan)
tokenizer.encode_batch('red', 8)
tokenizer.encode_batch(['red'], 0)
tokenizer.encode_batch(['red'], -1)
tokenizer.encode_batch([None], 8)
tokenizer.encode_batch(['red'], 8, dropout=2)
tokenizer.decode([10**9])
tokenizer.decode([-2])
BPETokenizer.load(missing)
BPETokenizer.load(folder)
BPETokenizer.load(empty_file)
BPETokenizer.load(binary_file)
BPETokenizer.load(json_file)
BPETokenizer.load(deep_json)
tokenizer.save(folder)
BPETokenizer([], [])
BPETokenizer([b'a', b'a'], [])
CLIPTokenizer.load(missing)
CLIPTokenizer.load(folder)
CLIPTokenizer.load(binary_file)
CLIPTokenizer.load(empty_file)
""",
    "attention": """
row_mask(0, 4)
row_mask(4, 0)
row_mask(-1, 4)
column_mask(4, -1)
conv_mask(4, 4, 0)
conv_mask(4, 4, 2)
conv_mask(4, 4, -3)
conv_mask(0, 0, 1)
causal_mask(-1)
layer_mask('diagonal', 4, 4, 1)
layer_mask(None, 4, 4, 1)
layer_kinds(0)
layer_kinds(-1)
attend(qkv, qkv, qkv, 'row', 4, 2, 1, method='magic')
attend(qkv, qkv, qkv, 'diagonal', 4, 2, 1)
""",
    "dvae": """
dvae.logits(images[0])
dvae.logits(images[:, :1])
dvae.logits(images[:, :, :15])
dvae.logits((images * 255).byte())
dvae.logits(images.long())
dvae.tokens(images[0])
dvae.decode(cells.float())
dvae.decode(cells[0])
dvae.decode(cells - 1000)
dvae.decode(cells + 256)
dvae.loss({'images': images[:, :1]}, 0)
gumbel_softmax(torch.zeros(1, 4, 2, 2), 0)
gumbel_softmax(torch.zeros(1, 4, 2, 2), -1)
gumbel_softmax(torch.zeros(1, 4, 2, 2), nan)
""",
    "dalle": """
dalle(text[:, 1:], image)
dalle(text, image[:, 1:])
dalle(text[0], image[0])
dalle(text[:1], image)
dalle(text.float(), image)
dalle.loss({'text': text, 'tokens': image[:, 1:]}, 0)
dalle.log_likelihood(text, image[:, :5])
""",
    "sample": """
sample(dalle, [1, 2], 0)
sample(dalle, [1, 2], -1)
sample(dalle, [1, 2], 1, temperature=-1)
sample(dalle, [1, 2], 1, temperature=nan)
sample(dalle, [1, 2], 1, temperature=inf)
sample(dalle, [1, 2], 1, top_k=0)
sample(dalle, [1, 2], 1, top_k=-3)
sample(dalle, [1, 2], 1, top_p=0)
sample(dalle, [1, 2], 1, top_p=1.1)
sample(dalle, [1, 2], 1, top_p=nan)
sample(dalle, [1, 2], 1, guidance=nan)
sample(dalle, [1, 2], 1, guidance=inf)
sample(dalle, [10**6], 1)
sample(dalle, [-5], 1)
sample(dalle, [1] * 40, 1)
sample(dalle, text, 5)
sample(dalle, text[0].float(), 1)
sample(dalle, [1, 2], 1, prompt=image[0].float())
sample(dalle, [1, 2], 1, prompt=torch.zeros(100, dtype=torch.int64))
sample(dalle, [1, 2], 1, prompt=image[0][:4] + 10**6)
sample(dalle, [1, 2], 1, prompt=image[0][:4] - 10**6)
sample(dalle, [1, 2], 1, prompt=torch.zeros(2, 2, 2, dtype=torch.int64))
pipeline.generate('')
pipeline.generate('   ')
pipeline.generate(None)
pipeline.generate('red ' * 100)
pipeline.generate('red', n=0)
pipeline.generate('red', n=-1)
pipeline.generate('red', n=4, candidates=2)
pipeline.generate('red', candidates=-1)
pipeline.generate('red', temperature=-1)
pipeline.generate('red', batch_size=0)
Pipeline(tokenizer, dvae, dalle).generate('red', n=1, candidates=2)
Pipeline.load(missing)
Pipeline.load(folder)
Pipeline.load(binary_file)
""",
    "clip": """
clip.encode_image(images[0])
clip.encode_image(images[:, :1])
clip.encode_image(images[:, :, :16])
clip.encode_image((images * 255).byte())
clip.encode_text(text[0])
clip.encode_text(torch.zeros(1, 400, dtype=torch.int64))
pack_text(torch.zeros(1, 400, dtype=torch.int64), config.clip)
pack_text(text + 10**6, config.clip)
pack_text(text[0], config.clip)
""",
    "metrics": """
wilson(0.5, 0)
wilson(2, 10)
wilson(-1, 10)
wilson(nan, 10)
best_of(torch.zeros(2, 3), torch.zeros(2, 3), 0)
best_of(torch.zeros(2, 3), torch.zeros(2, 3), 4)
best_of(torch.full((2, 3), nan), torch.zeros(2, 3), 1)
moments(torch.zeros(1, 4))
moments(torch.zeros(4))
inception_score(torch.ones(4, 3))
inception_score(torch.full((4, 3), nan))
gaussian_blur(images, -1)
Judge.load(missing)
Judge.load(folder)
Judge({'shape': ('a', 'b')}, image_size=30)
""",
    "data": """
load(config, 'validation')
load(config, None)
load(replace(config, data=replace(config.data, name='imagenet')), 'train')
load(replace(config, data=replace(config.data, image_size=64)), 'train')
load(own(missing), 'train')
load(own(folder), 'train')
load(own(binary_file), 'train')
load(own(''), 'train')
load(own('/proc/self/mem'), 'train')
shapes.draw(0)
shapes.draw(-1)
shapes.draw(4, 0, 'validation')
batches(train_set, config, 'judge')
batches(train_set, config, 'dalle')
batches(train_set, config, 'clip')
batches(train_set, config, 'dalle', tokenizer=tokenizer)
batches(train_set, config, 'dvae', rank=1, world=1)
batches(train_set, config, 'dvae', rank=-1)
batches(train_set, config, 'dvae', world=10**6)
""",
    "training": """
read_model(missing)
read_model(folder)
read_model(binary_file)
from_json('')
from_json('{}')
from_json('null')
from_json('{"preset": "toy"}')
save_model(binary_file, {}, '{}')
save_model(binary_file / 'x', {}, '{}')
fit(dvae, forever, config.train_dvae, binary_file)
fit(dvae, forever, config.train_dvae, binary_file / 'x')
fit(dvae, forever, config.train_dvae, folder / 'a', device='gpu')
fit(dvae, forever, config.train_dvae, folder / 'b', seed='x')
fit(dvae, lambda start: iter([]), config.train_dvae, folder / 'd')
fit(dvae, lambda start: iter([{}]), config.train_dvae, folder / 'e')
fit(dvae, lambda start: iter([None]), config.train_dvae, folder / 'f')
fit(dvae, forever, replace(config.train_dvae, accumulate=3), folder / 'g')
fit(dvae, forever, replace(config.train_dvae, precision='float8'), folder / 'h')
fit(torch.nn.Identity(), forever, config.train_dvae, folder / 'i')
""",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Small models with random weights, odd files, and the functions the tables call."""
    import minidalle.attention
    import minidalle.clip
    import minidalle.data
    import minidalle.data.shapes
    import minidalle.dvae
    import minidalle.evaluation.judge
    import minidalle.evaluation.metrics
    import minidalle.generate
    import minidalle.published.clip_tokenizer
    import minidalle.tokenizer
    import minidalle.train
    import minidalle.training.checkpoints
    import minidalle.transformer

    names = {"nan": float("nan"), "inf": float("inf"), "torch": torch}
    for module in (name for name in sys.modules if name.startswith("minidalle.")):
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
    return names | _models(config)


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
    text = tokenizer.encode_batch(["a red circle", "two"], 31)
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


CASES = [(entry, line) for entry, table in TABLES.items() for line in table.strip().splitlines()]


# The words of Python's and torch's own complaints, which tell a caller nothing.
STRANGERS = ("torch.cat", "range()", "not enough values", "Expected tensor", "in self")


@pytest.mark.parametrize(("entry", "case"), CASES, ids=[case for _, case in CASES])
def test_a_mistake_of_the_caller_is_a_clear_error(world, entry, case):
    with pytest.raises((ValueError, OSError)) as caught:
        eval(case, dict(world))
    message = str(caught.value)
    assert 10 < len(message) < 1500, f"no clear message: {caught.value!r}"
    assert not any(words in message for words in STRANGERS), message


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


RUN = [*SIZES, "train_dvae.steps=1", "train_dvae.batch_size=2", "train_dalle.steps=1"]

COMMANDS = """

fly
dvae --preset tiny
dvae --preset
dvae --seed -1
dvae --seed x
dvae --threads 0
dvae --threads many
dvae --device gpu
dvae --device cuda:99
dvae dalle.n_layers=two
dvae dalle.layers=2
dvae n_layers
dvae --run {binary_file}
dvae --run {binary_file}/x
dvae --run /proc/minidalle
dvae --model
dvae --model nothing
dvae --model openai-clip --weights {missing}
dvae --model openai-dvae --weights {binary_file}
dvae --model openai-dvae --weights {folder}
generate red --model vqgan-f16-1024 --weights {folder}
generate red --run {run} --clip {folder}
generate red --run {run} --batch 0
dvae --data {missing}
dvae --data {folder}
dvae --data {binary_file}
tokenizer --run {binary_file}
tokenizer tokenizer.vocab_size=1 dalle.text_vocab=1
dalle --run {missing}
dalle --run {folder}
clip --run {missing}
generate
generate red --run {missing}
generate red --run {binary_file}
generate red --preset tiny
generate red --run {run} -n 0
generate red --run {run} -n x
generate red --run {run} --candidates -1
generate red --run {run} -n 4 --candidates 2
generate red --run {run} --temperature -1
generate red --run {run} --temperature nan
generate red --run {run} --top-k 0
generate red --run {run} --top-p 2
generate red --run {run} --out picture.gif
generate red --run {run} --out {folder}
generate '' --run {run}
generate ' ' --run {run}
generate 'red red red red red red red red red red red red red red red red red red' --run {run}
evaluate --run {missing}
evaluate --vote {missing}
evaluate --vote {missing} {missing}
data --data {missing}
data --data {folder}
data --data {binary_file}
data data.name=imagenet
data data.image_size=64
plan --preset tiny
plan --gpus 0
plan --gpus -1
plan --batch 0
plan --batch -5
plan --gpu abacus
demo --preset cifar
demo --preset tiny
"""


@pytest.fixture(scope="module")
def run_folder(world, tmp_path_factory):
    """A folder with all four stages, as training leaves it."""
    folder = tmp_path_factory.mktemp("run")
    for stage in ("dvae", "dalle", "clip"):
        save_model(folder / stage, world[stage].state_dict(), to_json(world["config"]))
    (folder / "tokenizer").mkdir()
    world["tokenizer"].save(folder / "tokenizer" / "tokenizer.json")
    return folder


@pytest.mark.parametrize("command", COMMANDS[1:].splitlines())
def test_a_mistake_on_the_command_line_is_one_line_and_status_2(
    world, run_folder, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = world | {"run": run_folder}
    words = [word.format_map(names) for word in shlex.split(command)]
    if words and words[0] in ("dvae", "tokenizer", "dalle", "clip", "data") and "=" not in command:
        words += RUN  # should the mistake be missed, little is trained
    try:
        status = main(words)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2, said
    last = said.strip().splitlines()[-1]
    assert "Traceback" not in said and len(last) > 20
    assert not any(words in last for words in STRANGERS), last
