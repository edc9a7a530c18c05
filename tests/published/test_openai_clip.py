"""OpenAI's CLIP from a file against open_clip, both ViTs, and every kind of file it comes in."""

import sys
import types
import zipfile
from unittest import mock

import pytest
import torch
from helpers.clip_files import SMALL, random_clip, write_merges
from safetensors.torch import save_file
from torch import nn

from minidalle import published
from minidalle.clip import CLIP
from minidalle.config import CLIPConfig, replace
from minidalle.generate import Pipeline
from minidalle.published import openai_clip
from minidalle.published.weights import read_state


@pytest.fixture(scope="module")
def open_clip():
    """The published package; where torchvision is missing a stand-in takes its place."""
    names = ["torchvision", *(f"torchvision.{n}" for n in ("ops", "ops.misc", "transforms"))]
    names.append("torchvision.transforms.functional")
    lacking = {n: mock.MagicMock(__spec__=None) for n in names if "torchvision" not in sys.modules}
    try:
        with mock.patch.dict(sys.modules, lacking):
            return pytest.importorskip("open_clip.model", exc_type=ImportError)
    finally:
        for name in [n for n in sys.modules if n.startswith("open_clip")]:
            if lacking:  # other tests shall find the package as it is
                del sys.modules[name]


def theirs(open_clip, c: CLIPConfig) -> nn.Module:
    """Their CLIP of these sizes with random weights, in float32 on the CPU."""
    vision = dict(layers=c.vision_layers, width=c.vision_width, patch_size=c.patch_size)
    vision |= dict(image_size=c.image_size, head_width=64)
    text = dict(context_length=c.context_length, vocab_size=c.vocab_size, width=c.text_width)
    text |= dict(heads=c.text_heads, layers=c.text_layers)
    torch.manual_seed(0)
    return open_clip.CLIP(c.embed_dim, vision, text, quick_gelu=True).eval()


@pytest.mark.parametrize(
    "config",
    [
        replace(openai_clip.B32, vision_layers=2, text_layers=2),
        replace(openai_clip.B16, vision_layers=1, text_layers=1),
        pytest.param(openai_clip.B32, marks=pytest.mark.slow),
        pytest.param(openai_clip.B16, marks=pytest.mark.slow),
    ],
)
def test_features_are_open_clips(open_clip, config, tmp_path):
    model = theirs(open_clip, config)
    path = tmp_path / "open_clip_model.safetensors"
    save_file(model.state_dict(), path)
    state = read_state(path)
    assert openai_clip.sizes(state, path) == config
    ours = openai_clip.fill(CLIP(config), state, path)
    images, ids = torch.rand(2, 3, 224, 224), torch.zeros(2, 77, dtype=torch.int64)
    ids[0, :4] = torch.tensor([49_406, 320, 1125, 49_407])
    ids[1, :77] = torch.randint(49_406, (77,))
    ids[1, -1] = 49_407
    with torch.no_grad():
        pixels = (images - ours.mean) / ours.std
        want_image = model.encode_image(pixels, normalize=True)
        want_text = model.encode_text(ids, normalize=True)
        torch.testing.assert_close(ours.encode_image(images), want_image, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(ids), want_text, rtol=0, atol=1e-5)
    assert (want_image[0] - want_image[1]).abs().max() > 1e-3  # not all the same


class Part(nn.Module):
    """One module of a TorchScript archive; its forward pass does nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def script(state: dict[str, torch.Tensor], path) -> None:
    """Write an archive as the released one: nested modules, float16, and three loose numbers."""
    root = Part()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, Part())
            place = getattr(place, parent)
        place.register_parameter(leaf, nn.Parameter(tensor.half()))
    for name in openai_clip.NUMBERS:
        root.register_buffer(name, torch.tensor(7))
    torch.jit.save(torch.jit.script(root), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_kind_of_file_gives_the_same_model_and_scores(tmp_path):
    state, scores = random_clip(), []
    images, captions = torch.rand(2, 3, 32, 32), ["the cat", "in"]
    kinds = {
        "ViT-B-32.pt": lambda path: script(state, path),
        "ViT-B-16.pt": lambda path: torch.save({k: v.half() for k, v in state.items()}, path),
        "open_clip_model.safetensors": lambda path: save_file(
            {k: v.half() for k, v in state.items()}, path
        ),
    }
    for name, write in kinds.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder / name)
        write_merges(folder)
        clip = published.load("openai-clip", folder).reranker
        assert clip.config == SMALL and clip.visual.proj.dtype == torch.float32
        scores.append(clip.score(captions, images))
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])
    by_hand = torch.zeros(2, 77, dtype=torch.int64)
    words = clip.tokenizer.encode
    ids = [[516, *words("the cat"), 517], [516, *words("in"), 517]]  # start and end of text
    for row, values in zip(by_hand, ids, strict=True):
        row[: len(values)] = torch.tensor(values)
    want = (clip.encode_image(images) * clip.encode_text(by_hand)).sum(1)
    torch.testing.assert_close(scores[0], want, rtol=0, atol=1e-6)


RESNET = random_clip()
del RESNET["visual.positional_embedding"]


@pytest.mark.parametrize(
    "content, message",
    [
        (
            random_clip() | {"visual.proj": torch.zeros(128, 31)},
            r"visual\.proj is \(128, 31\)",
        ),
        (RESNET, r"lacks visual\.positional_embedding: only CLIP's ViTs"),
        ([1, 2], "holds a list"),
        ({"a": 1}, "a is a int, not a tensor"),
    ],
    ids=["a wrong size", "a ResNet", "a list", "a number"],
)
def test_a_file_that_is_not_right_is_named_in_one_line(tmp_path, content, message):
    write_merges(tmp_path)
    torch.save(content, tmp_path / "ViT-B-32.pt")
    with pytest.raises(ValueError, match=message) as error:
        published.load("openai-clip", tmp_path)
    assert "ViT-B-32.pt" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_archive_that_names_anything_else_is_refused(tmp_path, capsys):
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip/constants.pkl", b"")
        archive.writestr("clip/data.pkl", b"cbuiltins\nprint\n(S'this ran'\ntR.")
    with pytest.raises(ValueError, match=r"ViT-B-32\.pt .* was not run: it names builtins\.print"):
        openai_clip.load(tmp_path)
    assert capsys.readouterr().out == ""
    script({"a": torch.ones(2, 3)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(torch.ones(6).half().numpy().tobytes())
    content[at] ^= 255  # one byte of a tensor
    path.write_bytes(content)
    with pytest.raises(ValueError, match="CRC"):
        read_state(path)


def test_merges_of_another_size_are_named(tmp_path):
    config = replace(SMALL, vocab_size=600)
    torch.save(random_clip(config), tmp_path / "ViT-B-32.pt")
    with pytest.raises(FileNotFoundError, match=r"no bpe_simple_vocab_16e6\.txt\.gz or merges"):
        openai_clip.load(tmp_path)
    write_merges(tmp_path)
    with pytest.raises(ValueError, match=r"makes 518 ids, but ViT-B-32\.pt embeds 600"):
        openai_clip.load(tmp_path)


def test_it_is_a_reranker_of_any_pipeline(tmp_path):
    """The best of the candidates is the one that CLIP's score says, from the files alone."""
    torch.save(random_clip(), tmp_path / "ViT-B-32.pt")
    write_merges(tmp_path)
    clip = published.load("openai-clip", tmp_path).reranker
    pipeline = Pipeline(types.SimpleNamespace(), nn.Module(), nn.Module(), clip)
    images = torch.rand(3, 3, 32, 32)
    scores = pipeline.score(["in the"], images)
    assert scores.shape == (3,) and scores.std() > 0
    torch.testing.assert_close(scores, clip.score(["in the"] * 3, images))
