"""The table of published models: sizes, strictness, what is said first, and the download."""

import hashlib
import json
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from minidalle import published
from minidalle.cli import main
from minidalle.codebooks.vqgan import VQGAN
from minidalle.config import VQGANConfig
from minidalle.models import load
from minidalle.priors.mini import Mini
from minidalle.published import mindalle, rudalle, vqgan
from minidalle.published.weights import to_int8
from minidalle.stages import SHIPPED

MALEVICH = 1_310_410_880 + 68_995_971
SIZES = {
    "dalle-mini": 437_962_720 + 46_709_891,
    "dalle-mega": 2_587_967_488 + 46_709_891,
    "mindalle": 1_291_081_728 + 76_073_859,
    "rudalle-malevich": MALEVICH,
    "rudalle-malevich-v2": MALEVICH,
    "rudalle-emojich": MALEVICH,
    "rudalle-surrealist": MALEVICH,
    "rudalle-kandinsky": 11_519_306_624 + 68_995_971,
    "openai-clip": 151_277_313,
    "openai-clip-b16": 149_620_737,
    "openai-dvae": 53_786_240 + 43_829_766,
    "vqgan-f16-1024": 72_141_699,
    "vqgan-f16-16384": 76_073_859,
    "vqgan-gumbel-f8": 68_995_971,
}


@pytest.mark.parametrize("name", published.CHECKPOINTS)
def test_every_name_is_built_at_the_published_size_without_memory(name):
    with torch.device("meta"):
        parts = published.make(name)
    found = [p for part in parts if part is not None for p in part.parameters()]
    assert all(p.is_meta for p in found)
    assert sum(p.numel() for p in found) == SIZES[name]


def test_what_a_model_needs_is_said_and_an_unknown_name_or_part_is_refused():
    said = published.describe("openai-clip", torch.bfloat16)
    assert "151,277,313 parameters" in said and "0.6 GB" in said and "MIT" in said
    with pytest.raises(ValueError, match="unknown model 'clip'; choose from"):
        published.describe("clip")
    with pytest.raises(ValueError, match="openai-clip has no codebook and no prior"):
        published.make("openai-clip", "codebook", "prior")


TINY = VQGANConfig(image_size=32, n_hid=8, n_pools=2, n_blocks=1, vocab_size=32, n_init=8)


def lightning(path, extra=()):
    """Write a checkpoint as PyTorch Lightning does: a class of its own, the discriminator."""
    torch.manual_seed(0)
    model = VQGAN(TINY)
    state = model.state_dict() | {"loss.discriminator.weight": torch.zeros(3)} | dict(extra)
    kind = type("ModelCheckpoint", (), {"__module__": vqgan.__name__})
    vqgan.ModelCheckpoint = kind  # where pickle looks for it
    torch.save({"epoch": 3, "callbacks": {kind: {"best": 1.0}}, "state_dict": state}, path)
    del vqgan.ModelCheckpoint
    return model.eval()


@pytest.fixture
def tiny_row(monkeypatch):
    """The table with one more name: a VQGAN of a few layers, whose file names a class."""
    name = f"{vqgan.__name__}.ModelCheckpoint"
    monkeypatch.setattr("minidalle.published.weights.read_state.__defaults__", ((), (name,)))
    row = published._vqgan(TINY, "page")
    monkeypatch.setitem(published.CHECKPOINTS, "tiny", row)
    return row


def test_a_published_tokenizer_becomes_the_first_stage_of_a_run(tiny_row, tmp_path, capsys):
    want = lightning(tmp_path / "last.ckpt")
    run = tmp_path / "run"
    argv = ["dvae", "--model", "tiny", "--weights", str(tmp_path), "--run", str(run)]
    assert main(argv) == 0
    assert "8 x 8 tokens of 32 codes" in capsys.readouterr().out
    model, images = load(run, "dvae"), torch.rand(2, 3, 32, 32)
    tokens = model.tokens(images)
    assert torch.equal(tokens, want.tokens(images)) and tokens.unique().numel() > 1
    torch.testing.assert_close(model.decode(tokens), want.decode(tokens))


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"encoder.more": torch.zeros(1)}, r"last\.ckpt holds encoder\.more"),
        ({"quantize.embedding.weight": torch.zeros(64, 8)}, r"is \(64, 8\), but must be \(32, 8\)"),
    ],
)
def test_what_does_not_belong_in_the_file_is_named(tiny_row, tmp_path, extra, message):
    lightning(tmp_path / "last.ckpt", extra)
    with pytest.raises(ValueError, match=message):
        published.load("tiny", tmp_path)


def test_a_class_that_is_not_expected_in_the_file_is_refused(tmp_path):
    lightning(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt .*was not run"):
        vqgan.load(tmp_path, torch.float32, TINY)


class Hostile:
    def __reduce__(self):
        return print, ("was run",)


def write_vocabularies(folder):
    """Write the text files that priors read before their weights, as large as they must be."""
    for suffix in ("", "_mini"):
        marks = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
        (folder / f"vocab{suffix}.json").write_text(json.dumps(marks))
        (folder / f"merges{suffix}.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer").mkdir()
    symbols = {"[UNK]": 0} | {f"s{i}": i for i in range(1, 16_383)}  # and a pad
    (folder / mindalle.VOCABULARY).write_text(json.dumps(symbols))
    (folder / mindalle.MERGES).write_text("#version: 0.2\n")
    characters = ["9601 4", *(f"{2**16 + i} {i}" for i in range(5, 16_384))]
    (folder / rudalle.VOCABULARY).write_text("\n".join(["16380 0", *characters, "1 0 2 3"]))


@pytest.mark.parametrize("damage", ["code", "truncated"])
@pytest.mark.parametrize("name", published.CHECKPOINTS)
def test_no_file_of_any_model_is_run_and_half_a_file_is_named(name, damage, tmp_path, capsys):
    write_vocabularies(tmp_path)
    for file in published.CHECKPOINTS[name].files:
        path = tmp_path / file
        if path.suffix in (".pt", ".bin", ".ckpt", ".pkl", ".safetensors"):
            torch.save({"a": Hostile() if damage == "code" else torch.ones(999)}, path)
            if damage == "truncated":
                path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"[/\\]\w+\.(pt|bin|ckpt|pkl|safetensors) ") as error:
        published.load(name, tmp_path)
    assert "\n" not in str(error.value) and "was run" not in capsys.readouterr().out


# ---------------------------------------------------------------- the download


class Hub:
    """A stand-in of the hub's library with two small files."""

    def __init__(self, files, wrong=()):
        self.files, self.wrong, self.asked = files, wrong, []

    def HfApi(self):
        return self

    def get_paths_info(self, repo, paths):
        content = self.files[repo, paths[0]]
        sha256 = "0" if paths[0] in self.wrong else hashlib.sha256(content).hexdigest()
        return [SimpleNamespace(size=len(content), lfs=SimpleNamespace(sha256=sha256))]

    def hf_hub_download(self, repo, file, local_dir):
        self.asked.append(file)
        (local_dir / file).write_bytes(self.files[repo, file])
        return str(local_dir / file)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIDALLE_DATA", str(tmp_path / "shared"))
    monkeypatch.setattr(published, "places", lambda: [tmp_path])
    row = published.CHECKPOINTS["openai-clip"]
    files = {(repo, file): file.encode() * 99 for file, repo in row.files.items()}
    stub = Hub(files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    return stub


def test_missing_files_are_fetched_once_and_what_comes_is_said_first(hub, tmp_path, capsys):
    folder = published.fetch("openai-clip")
    assert folder == tmp_path / "published" / "openai-clip"
    assert (folder / "merges.txt").read_bytes() == b"merges.txt" * 99
    said = capsys.readouterr().out
    assert "0.00 GB" in said and str(folder) in said and "MIT" in said
    (folder / "merges.txt").unlink()
    published.fetch("openai-clip")
    assert hub.asked == ["open_clip_model.safetensors", "merges.txt", "merges.txt"]


def test_a_file_with_another_checksum_is_deleted(hub, tmp_path):
    hub.wrong = ("open_clip_model.safetensors",)
    with pytest.raises(OSError, match=r"cannot fetch openai-clip: open_clip.* checksum"):
        published.fetch("openai-clip")
    assert not list((tmp_path / "published" / "openai-clip").iterdir())


def test_without_the_library_or_the_network_it_is_said_what_to_do(hub, monkeypatch):
    hub.files = {}
    with pytest.raises(OSError, match="cannot fetch openai-clip"):
        published.fetch("openai-clip")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install huggingface_hub.*--weights FOLDER"):
        published.fetch("openai-clip")
    with pytest.raises(ValueError, match=r"no last\.ckpt in .*get it from https://heibox"):
        published.fetch("vqgan-f16-1024")


def test_a_full_disk_is_found_before_the_download(hub, monkeypatch):
    full = lambda _: SimpleNamespace(free=10)  # noqa: E731
    monkeypatch.setattr(published.shutil, "disk_usage", full)
    with pytest.raises(OSError, match=r"only 0\.00 GB are free"):
        published.fetch("openai-clip")
    assert hub.asked == []


@torch.no_grad()
def test_eight_bits_a_weight_change_a_prior_little_and_serve_the_same_command(tmp_path, capsys):
    prior, small = (load(SHIPPED / "mini_toy", "dalle") for _ in range(2))
    assert to_int8(small) is small
    assert not [m for m in small.modules() if type(m) is nn.Linear]
    weight = small.image_head.weight()
    assert (weight.dtype, weight.qscheme()) == (torch.qint8, torch.per_channel_affine)
    torch.testing.assert_close(weight.dequantize(), prior.image_head.weight, rtol=0, atol=0.02)
    text = torch.randint(256, (4, prior.caption_len), generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(prior.image_vocab, (4, prior.grid**2))
    exact, rounded = (m.log_likelihood(text, tokens)[1] for m in (prior, small))
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    out = tmp_path / "drawn.png"
    call = ["generate", "a red star", "-n", "2", "--preset", "mini_toy", "--int8"]
    seen = mock.Mock(side_effect=to_int8)
    with mock.patch("minidalle.cli.generate.to_int8", seen):
        assert main([*call, "--out", str(out)]) == 0 and out.is_file()
    assert isinstance(seen.call_args[0][0], Mini)
    for more in ("--bfloat16", "--float16", "--compile"):
        assert main([*call, more, "--out", str(out)]) == 2
        assert "--int8 takes no" in capsys.readouterr().err


def test_a_torch_without_eight_bits_is_said_in_one_line(monkeypatch):
    monkeypatch.delattr(torch.ao, "quantization", raising=False)
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(ValueError, match="has no 8-bit maps; use bfloat16"):
        to_int8(nn.Linear(2, 2))
