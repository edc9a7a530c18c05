"""The command line, given wrong words, damaged runs and odd folders of images.

What must be true afterwards: one line on stderr that says where the mistake is, exit status 2, no
traceback, and not a file written, changed or lost. Some damage must not stop a run: it goes on,
and ends with the weights of a run that nothing happened to.
"""

import io
import json
import os
import pickle
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from helpers import own_images  # noqa: F401  for FOLDERS
from helpers.own_images import BROKEN, good_pairs, png, write_folder
from safetensors import safe_open
from safetensors.torch import save_file

from minidalle.cli import main

pytestmark = pytest.mark.slow
TINY = [
    "data.n_train=16", "data.n_test=8", "dvae.n_hid=8", "dvae.n_init=8", "dalle.n_layers=2",
    "dalle.n_heads=2", "dalle.head_dim=8", "clip.vision_width=12", "clip.vision_layers=1",
    "clip.text_width=12", "clip.text_layers=1",
    *(f"train_{s}.{f}" for s in ("dvae", "dalle", "clip")
      for f in ("steps=4", "batch_size=4", "save_every=2", "eval_every=4", "warmup=0")),
    "train_clip.lookalikes=0", "train_clip.rebuilt=0", "train_clip.precision=float32",
]  # fmt: skip
STRANGERS = ("torch.cat", "__init__", "KeyError")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A finished run of four updates a stage, with its checkpoints, and images with captions."""
    root = tmp_path_factory.mktemp("whole")
    for verb in ("tokenizer", "dvae", "dalle", "clip"):
        assert main([verb, "--run", str(root / "run"), "--threads", "1", *TINY]) == 0
    write_folder(root / "own", good_pairs(30))
    (root / "empty").mkdir()
    (root / "binary").write_bytes(bytes(range(256)) * 8)
    return root


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    """A copy of it that may be damaged, as the working folder."""
    shutil.copytree(whole, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return Path()


def state(folder: Path) -> dict[str, object]:
    """Everything that lies in a folder; an index beside a tar is no harm."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.name.endswith(".idx.npy"):
            found[str(path)] = path.read_bytes() if path.is_file() else path.is_dir()
    return found


def refused(command: str, capsys, *words: str) -> None:
    """Run a command and demand what a refusal must be."""
    before = state(Path())
    capsys.readouterr()
    try:
        status = main(shlex.split(command))
    except SystemExit as stop:  # argparse's own
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2, error
    last = error.strip().splitlines()[-1]
    assert "Traceback" not in error and 20 < len(last) < 1500, error
    assert not [word for word in STRANGERS if word in last], last
    assert not [word for word in words if word not in last], last
    after = state(Path())
    assert [name for name in {*before, *after} if before.get(name) != after.get(name)] == []


def table(text: str) -> list:
    """Rows 'case : words that must be said'."""
    rows = [row.split(" : ") for row in text.strip().splitlines()]
    return [pytest.param(*row, id=row[0]) for row in rows]


# ---------------------------------------------------------------- words

COMMANDS = """
--preset toy : VERB
dvae --preset --seed 1 : --preset
dvae --seed x : 'x'
dvae --threads many : many
dvae --threads -2 : -2
dvae --device gpu : gpu
dvae --device cuda:99 : cuda:99
dvae --device '' : --device
dvae n_layers : n_layers
dvae --fly : --fly
dvae --compress 2 : torchrun
dvae --float16 : torchrun
dvae dvae.vocab_size=0 dalle.image_vocab=0 : dvae.vocab_size
dvae codebook=nothing : nothing
dalle prior=nothing : nothing
dvae --run binary : binary
dvae --run binary/x : binary
dvae --run /proc/minidalle : /proc/minidalle
dvae --model --seed 1 : --model
dvae --model openai-clip --weights missing : openai-clip
dvae --model openai-dvae --weights binary : binary
dvae --model openai-dvae --weights empty : empty
generate red --model vqgan-f16-1024 --weights empty : vqgan-f16-1024
generate red --run run --clip empty : empty
generate red --run run --batch 0 : batch
dvae --data missing : missing
dvae --data empty : no files
dvae --data binary : binary
tokenizer --run binary : binary
tokenizer tokenizer.vocab_size=1 dalle.text_vocab=1 : vocab_size
dalle --run missing : missing
dalle --run empty : minidalle tokenizer
clip --run missing : missing
dalle --run run dalle.n_layers=3 : dalle.n_layers was 2
dalle --run run --seed 3 : seed
dvae --run run train_dvae.steps=9 : train_dvae.steps was 4
tokenizer --run run tokenizer.vocab_size=300 dalle.text_vocab=300 clip.vocab_size=302 : vocab_size
generate : caption
generate red --run binary : binary
generate red --preset tiny : tiny
generate red --preset own : minidalle tokenizer
generate red --run run -n 0 : n must be
generate red --run run -n x : x
generate red --run run --candidates -1 : -1
generate red --run run -n 4 --candidates 2 : 2 candidates
generate red --run run --temperature -1 : temperature
generate red --run run --temperature nan : nan
generate red --run run --top-k 0 : top_k
generate red --run run --top-p 2 : top_p
generate red --run run --guidance inf : guidance
generate red --run run --out picture.gif : .png
generate red --run run --out empty : .png
generate red --run run --out binary/x.png : binary/x.png
generate '' --run run : empty
generate ' ' --run run : empty
generate 'red red red red red red red red red red red red red red' --run run : at most 24
generate red blue --run run : blue
evaluate --run missing : missing
evaluate --run empty : empty
evaluate --run run -n 0 : n
evaluate --run run --seeds 0 : seeds
evaluate --run run --candidates 0 : candidates
evaluate --run run --protocol nature : nature
evaluate --run run --data missing : missing
evaluate --vote missing : --vote
evaluate --vote missing missing : missing
evaluate --vote run run : two different runs
evaluate --count missing : missing
evaluate --count binary : binary
evaluate --count own/image_000.txt : image_000.txt
evaluate --count empty empty : empty
data --data missing : missing
data --data empty : no files
data --data binary : binary
data data.name=imagenet : imagenet
data data.image_size=64 : data.image_size
data --data https://127.0.0.1:9/{0..1}.tar : 127.0.0.1
data --data pipe:false : one shard
compare missing : missing
compare binary : binary
compare own : own
compare run one two : two
plan --preset tiny : tiny
plan --gpus 0 : gpus
plan --gpus -1 : gpus
plan --batch 0 : batch
plan --batch -5 : batch
plan --gpu abacus : abacus
demo --preset tiny : tiny
demo --fly : --fly
"""


@pytest.mark.parametrize(("command", "words"), table(COMMANDS))
def test_wrong_words_are_refused(place, capsys, command, words):
    small = command.split()[:1] not in (["plan"], ["evaluate"], ["generate"], ["compare"], ["demo"])
    options = " ".join(TINY) if small and command and "=" not in command else ""
    refused(f"{command} {options}", capsys, words)


# ---------------------------------------------------------------- damaged runs


class Hostile:
    """What a pickle could do."""

    def __reduce__(self):
        return os.mkdir, ("was-here",)


BYTES = {  # what may become of any file
    "empty": lambda old: b"",
    "cut": lambda old: old[: len(old) // 2],
    "two bytes short": lambda old: old[:-2],
    "zeros": lambda old: bytes(len(old)),
    "random": lambda old: bytes((31 * i * i + 7) % 256 for i in range(len(old))),
    "text": lambda old: b"hello",
    "UTF-16": lambda old: "hello, world".encode("utf-16"),
    "a pickle": lambda old: pickle.dumps(Hostile()),
    "a folder": None,
}
FIELDS = {  # what may become of a stage's config.json
    "null": "null", "a list": "[]", "no fields": "{}", "deep": "[" * 100_000, "NaN": "NaN",
    "no section": lambda c: c.pop("dvae"), "no seed": lambda c: c.update(seed=None),
    "unknown": lambda c: c.update(fly=1), "not a number": lambda c: c["dvae"].update(n_hid="8"),
    "too small": lambda c: c["dalle"].update(n_layers=0),
    "no object": lambda c: c.update(clip=3), "odd": lambda c: c["dalle"].update(kernel=4),
    "huge": lambda c: c["clip"].update(text_width=10**400),
    "unfit": lambda c: c["dalle"].update(grid=9),
    "not finite": lambda c: c["dvae"].update(tau=1e999),
    "other sizes": lambda c: (
        c["dvae"].update(n_hid=12), c["dalle"].update(n_layers=3), c["clip"].update(embed_dim=9)
    ),
}  # fmt: skip


def _first(tensors: dict) -> str:
    return next(name for name, value in tensors.items() if value.ndim > 1)


TENSORS = {  # what may become of a stage's model.safetensors, whose checksum is then right
    "NaN": lambda t, m: t[_first(t)].view(-1)[:1].fill_(float("nan")),
    "infinite": lambda t, m: t[_first(t)].fill_(float("inf")),
    "one fewer": lambda t, m: t.pop(_first(t)),
    "one more": lambda t, m: t.update(fly=torch.ones(2)),
    "another shape": lambda t, m: t.update({_first(t): torch.ones(3, 1)}),
    "nothing": lambda t, m: t.clear(),
    "another name": lambda t, m: t.update(fly=t.pop(_first(t))),
    "of a stage made anew": lambda t, m: m.update(made_from='{"tokenizer": "0", "dvae": "0"}'),
    "from nonsense": lambda t, m: m.update(made_from="nonsense"),
    "from a list": lambda t, m: m.update(made_from="[1]"),
}


def damage(path: Path, kind: str) -> None:
    """Do to a file what BYTES, FIELDS or TENSORS say."""
    old = path.read_bytes()
    if kind in BYTES and BYTES[kind] is None:
        path.unlink()
        path.mkdir()
    elif path.suffix == ".safetensors" and kind in TENSORS:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            metadata = file.metadata()
        del metadata["checksum"]
        TENSORS[kind](tensors, metadata)
        save_file(tensors, path, metadata)
    elif kind in FIELDS:
        change = FIELDS[kind]
        if isinstance(change, str):
            return path.write_text(change)
        config = json.loads(old)
        change(config)
        path.write_text(json.dumps(config))
    else:
        path.write_bytes(BYTES[kind](old))


DAMAGED = [
    (f"run/{stage}/{file}", kind)
    for stage in ("dvae", "dalle", "clip")
    for file, kinds in (("config.json", BYTES | FIELDS), ("model.safetensors", BYTES | TENSORS))
    for kind in kinds
    if (stage, kind) not in {("dvae", "of a stage made anew"), ("dvae", "from a list")}
]


@pytest.mark.parametrize(("file", "kind"), DAMAGED)
def test_a_damaged_stage_is_named(place, capsys, file, kind):
    damage(Path(file), kind)
    stage = "stale" if kind == "of a stage made anew" else file.split("/")[1]
    refused("generate red --run run -n 1 --candidates 2", capsys, stage)
    if file.startswith("run/dvae"):  # and what is trained from it
        refused(f"dalle --run run --fresh {' '.join(TINY)}", capsys, stage)


TOKENIZER = {  # what may become of a tokenizer's file; tests/test_tokenizer.py has many more
    "no model": lambda f: f.pop("model"), "no merges": lambda f: f["model"].pop("merges"),
    "few": lambda f: f["model"]["vocab"].clear(),
    "ids from 1": lambda f: f["model"].update(
        vocab={token: i + 1 for token, i in f["model"]["vocab"].items()}
    ),
    "another version": lambda f: f.update(version="2.0"), "a number": lambda f: f.update(model=3),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*TOKENIZER, *BYTES])
def test_a_damaged_tokenizer_is_named(place, capsys, kind):
    path = Path("run/tokenizer/tokenizer.json")
    if kind in TOKENIZER:
        content = json.loads(path.read_text(encoding="utf-8"))
        TOKENIZER[kind](content)
        path.write_text(json.dumps(content), encoding="utf-8")
    else:
        damage(path, kind)
    for stage in ("dalle", "clip"):  # they would say that it was made anew
        (Path("run") / stage / "model.safetensors").unlink()
    refused(f"dalle --run run --fresh {' '.join(TINY)}", capsys, "tokenizer", "run")
    refused(f"clip --run run --fresh {' '.join(TINY)}", capsys, "tokenizer", "run")


# ---------------------------------------------------------------- images of one's own

RAW = png()


def tar(name: str, files: list[tuple[str, bytes | None]], **kinds) -> None:
    """Write a tar; kinds: of its members, by name, as tarfile's letters."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(name, "w") as file:
        for path, body in files:
            member = tarfile.TarInfo(path)
            member.size, member.type = len(body or b""), kinds.get(path.partition(".")[0], b"0")
            member.linkname = "elsewhere"
            file.addfile(member, io.BytesIO(body or b""))


def put(name: str, content: bytes | str = b"") -> None:
    path = Path("d", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def rows(text: str, name: str = "captions.csv") -> None:
    """A table, and twelve images beside it, 0.png to 11.png."""
    put(name, text)
    for i in range(12):
        put(f"{i}.png", png((20 * i, 0, 0)))


def all_of(kind: str) -> None:
    """Images with captions, every second of them broken in one of the ways of BROKEN."""
    good, (image, caption, _) = good_pairs(30), BROKEN[kind]
    write_folder(
        Path("d"),
        {n: (image, caption) if i % 2 == 0 else p for i, (n, p) in enumerate(good.items())},
    )


FOLDERS = r"""
put('a.txt', 'a cat') : found 1 .txt
put('a.png', RAW) : no caption (a.png)
put('.hidden/a.png', RAW), put('.hidden/a.txt', 'a cat') : no files
put('.a.png', RAW), put('.a.txt', 'a cat') : no files
put('a.png', RAW), put('a.txt', '') : empty caption (a.png)
put('a.png', RAW), put('a.txt', b'\xff\xfe\x00') : not UTF-8
put('a.png', RAW), put('a.TXT', 'a cat') : no caption
put('a.png', RAW), put('a.txt', 'a cat') : no pair of d is left
put('train/a.png', RAW), put('train/a.txt', 'a cat') : none called 'test'
put('test/a.png', RAW), put('test/a.txt', 'a cat') : none called 'train'
put('train/a.png', RAW), put('test/a.png', RAW) : no caption
put('a.heic', RAW), put('a.txt', 'a cat') : 1 .heic
put('a.png/x'), put('a.txt', 'a cat') : found
os.mkdir('d'), os.symlink('nowhere', 'd/a.png'), put('a.txt', 'x') : missing image
os.mkdir('d'), os.symlink('.', 'd/loop') : no files
os.mkdir('d'), os.mkfifo('d/a.png'), put('a.txt', 'a cat') : not a file
all_of('cut_in_half') : broken image (image_000.png
all_of('no_image_at_all') : not an image
all_of('no_bytes') : not an image
all_of('bomb') : 50,000,000 pixels
all_of('large_bomb') : 50,000,000 pixels
all_of('without') : no caption
all_of('empty') : empty caption
all_of('blank') : empty caption
all_of('latin1') : not UTF-8
rows('') : captions.csv
rows('file,caption\n') : captions.csv
rows('1.png,a cat\n2.png,"a dog\n3.png,x\n') : row from line 2
rows('1.png\n2.png\n') : no caption
rows('caption,file\n') : captions.csv
rows('file,caption\nnone.png,a cat\n') : missing image (none.png)
rows('file,caption\n1.png,\n2.png, \n') : empty caption
rows('file,caption\n/etc/passwd,a cat\n') : path outside the folder
rows('file,caption\n../binary,a cat\n') : path outside the folder
rows('file,caption\n1.png,a cat,a dog\n') : more cells than columns
rows('file,caption\n.,a cat\n') : not a file
rows('file,caption\n1.png/x,a cat\n') : missing image
rows('file;caption\n1.png;a cat\n') : captions.csv
rows(b'\xff\xfef\x00i\x00l\x00e\x00') : captions.csv
rows(b'file,caption\n1.png,\xff\xff\n2.png,\xff\n') : not UTF-8
rows('file,caption\n1.png,"a" cat\n') : line 2
rows('file,caption\n' + '1.png,a cat\0\n') : no pair of d is left
rows('file,caption\n\0.png,a cat\n') : .png
rows('x' * 200_000 + ',a cat\n') : line 1
rows('1.png\ta cat\n2.png a dog\n', 'captions.tsv') : no pair of d is left
rows('\t\t\t\n', 'captions.tsv') : empty caption
rows('file,caption\n1.png,a cat\n', 'captions.tsv') : no caption
put('captions.tsv/x'), put('a.png', RAW) : no caption
put('a.tar') : empty, broken or truncated tar (a.tar)
put('a.tar', 'hello') : truncated tar (a.tar)
put('a.tar', bytes(512)) : found 1 .tar
put('a.tar', bytes(10_240)) : no usable pair
put('a.tar', b'\x1f\x8b\x08' + bytes(99)) : a.tar
os.makedirs('d/a.tar') : no files
os.mkdir('d'), os.mkfifo('d/a.tar') : found 1 .tar
tar('d/a.tar', [('a.png', RAW)]) : no caption
tar('d/a.tar', [('a.txt', b'a cat')]) : no image
tar('d/a.tar', [('a.b.png', RAW), ('a.b.txt', b'a cat')]) : a.tar
tar('d/a.tar', [('a.png', None), ('a.txt', b'a cat')], a=tarfile.SYMTYPE) : a.tar
tar('d/a.tar', [('a.png', None), ('a.txt', b'a cat')], a=tarfile.LNKTYPE) : a.tar
tar('d/a.tar', [('a.png', None)], a=tarfile.FIFOTYPE) : found 1 .tar
tar('d/a.tar', [('../../a.png', RAW)]) : no caption
tar('d/a.tar', [('.a.png', RAW), ('.a.txt', b'a cat')]) : no usable pair
tar('d/a.tar', [('a.png', own_images.bomb()), ('a.txt', b'a cat')]) : 50,000,000 pixels
tar('d/a.tar', [('a.png', RAW), ('a.txt', b'a cat')]) : no pair of d is left
"""


@pytest.mark.parametrize(("made", "words"), table(FOLDERS))
def test_a_folder_without_use_is_refused(place, capsys, made, words):
    eval(made, globals())
    refused(f"data --data d --run new {' '.join(TINY)}", capsys, words)


# ---------------------------------------------------------------- damage that stops nothing

HARMLESS = {  # what may become of an unfinished run of dalle
    "nothing": "None",
    "the newest checkpoint is cut": "damage(newest, 'cut')",
    "the newest checkpoint is empty": "damage(newest, 'empty')",
    "the newest checkpoint is random": "damage(newest, 'random')",
    "the newest checkpoint is a pickle": "damage(newest, 'a pickle')",
    "a bit of the newest is turned": "damage(newest, 'zeros')",
    "the newest checkpoint is gone": "newest.unlink()",
    "all checkpoints are gone": "shutil.rmtree(newest.parent)",
    "another model lies among them": "shutil.copy('run/dvae/model.safetensors', newest)",
    "a save was broken off": "newest.with_name(newest.name + '.7.tmp').write_bytes(b'x')",
    "the log is empty": "damage(stage / 'log.jsonl', 'empty')",
    "the log is cut": "damage(stage / 'log.jsonl', 'two bytes short')",
    "the log is gone": "(stage / 'log.jsonl').unlink()",
    "samples is a file": "(shutil.rmtree(stage / 'samples'), put('../run/dalle/samples'))",
    "the kept tokens are cut": "[damage(p, 'cut') for p in kept]",
    "the kept tokens are a pickle": "[damage(p, 'a pickle') for p in kept]",
    "cache is a file": "(shutil.rmtree('run/cache'), put('../run/cache'))",
    "the configuration is gone": "(stage / 'config.json').unlink()",
    "the tokenizer's configuration is gone": "Path('run/tokenizer/config.json').unlink()",
}


def weights(path: Path) -> bytes:
    """What follows the head of a safetensors file, whose order is by chance."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HARMLESS)
def test_some_damage_stops_nothing(place, capsys, kind):
    stage = Path("run/dalle")
    wanted = weights(stage / "model.safetensors")
    (stage / "model.safetensors").unlink()
    (stage / "checkpoints/step-00000004.safetensors").unlink()  # as if it were not yet done
    newest = max(stage.glob("checkpoints/*"))
    shutil.copy(newest, newest.with_name("step-00000001.safetensors"))  # of update 2, in truth
    names = {"newest": newest, "stage": stage, "kept": list(Path("run/cache").iterdir())}
    eval(HARMLESS[kind], globals() | names)
    assert main(["dalle", "--run", "run", *TINY]) == 0, capsys.readouterr().err
    assert weights(stage / "model.safetensors") == wanted
    assert not list(stage.glob("**/*.tmp")) and not Path("was-here").exists()
