"""DALL-E mini from the files of min-dalle, beside min-dalle itself on random weights."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.min_dalle import peer
from torch import nn

from minidalle.config import MiniConfig, get_config
from minidalle.generate import sample
from minidalle.published import dalle_mini
from minidalle.published.dalle_mini import MEGA, MINI, BARTTokenizer, load, make
from minidalle.tokenizer import PAD

# Mini's structure at a small width: three layers, two heads of 64 numbers.
SMALL = MiniConfig(text_vocab=60, n_layers=3, n_heads=2, glu_width=40)
WORDS = ["a red fox", "a red box", "the blue box of a fox", "an avocado armchair", "a-b 3d, red."]


def merges_and_vocab() -> tuple[list[tuple[str, str]], dict[str, int]]:
    """A small vocabulary in BART's form: four marks, then characters, then merges in order."""
    pairs = [("r", "e"), ("o", "x"), ("re", "d"), ("Ġ", "red"), ("Ġ", "a"), ("Ġ", "f"),
             ("Ġf", "ox"), ("Ġ", "b"), ("Ġb", "ox"), ("t", "h"), ("Ġ", "th"), ("Ġth", "e"),
             ("a", "r"), ("Ġa", "r")]  # fmt: skip
    characters = [*"Ġabcdefhilmnorstuvx-,3"]
    subwords = ["<s>", "<pad>", "</s>", "<unk>", *characters, *(a + b for a, b in pairs)]
    return pairs, {subword: i for i, subword in enumerate(subwords)}


def write_vocabulary(folder) -> None:
    pairs, vocab = merges_and_vocab()
    (folder / "vocab_mini.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs), ""]
    (folder / "merges_mini.txt").write_text("\n".join(lines), encoding="utf-8")


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Random weights for all; the gains that the released files lack stay 1."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                if not name.endswith(dalle_mini.NO_GAIN):
                    p.add_(0.3 * torch.randn(p.shape, generator=g))
            else:
                p.copy_(torch.randn(p.shape, generator=g) * p.shape[1] ** -0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture
def tiny_codebook(monkeypatch):
    small = replace(dalle_mini.CODEBOOK, n_hid=8, n_blocks=1, n_init=8)
    monkeypatch.setattr(dalle_mini, "CODEBOOK", small)


def write_codebook(folder) -> dict[str, torch.Tensor]:
    codebook = make(SMALL).codebook
    state = {k.removeprefix("quantize."): v for k, v in codebook.state_dict().items()}
    torch.save(state, folder / "detoker.pt")
    return state


def as_released(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {k: v for k, v in model.state_dict().items() if not k.endswith(dalle_mini.NO_GAIN)}
    assert len(model.state_dict()) - len(state) in (10, 13)  # 3 L + 1 and 4 L + 1
    return state


@pytest.fixture
def released(tmp_path, tiny_codebook):
    """min-dalle's two halves with random weights, and a folder that holds them as released."""
    c = SMALL
    encoder = peer("models.dalle_bart_encoder").DalleBartEncoder(
        c.n_layers, c.width, c.n_heads, c.text_vocab, c.text_len, c.glu_width, "cpu"
    )
    decoder = peer("models.dalle_bart_decoder").DalleBartDecoder(
        c.image_vocab, c.width, c.n_heads, c.glu_width, c.n_layers, "cpu"
    )
    halves = {"encoder": randomise(encoder, 1), "decoder": randomise(decoder, 2)}
    for name, half in halves.items():
        torch.save(as_released(half), tmp_path / f"{name}_mini.pt")
    write_vocabulary(tmp_path), write_codebook(tmp_path)
    return halves, tmp_path


def encoded(halves, ids: list[int], images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """min-dalle's states and masks of a caption: rows without it, then rows with it."""
    text = torch.ones(2, 64, dtype=torch.int64)
    text[0, :2] = torch.tensor([0, 2])
    text[1, : len(ids) + 2] = torch.tensor([0, *ids, 2])
    rows = [0] * images + [1] * images
    return halves["encoder"](text)[rows], text[rows].not_equal(1)[:, None, None]


def captions(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([[*ids, *[PAD] * (62 - len(ids))] for ids in rows])


# ---------------------------------------------------------------- beside min-dalle


@pytest.mark.parametrize("start", [16_383, 16_384])
def test_teacher_forced_logits_are_those_of_min_dalle(released, start):
    halves, folder = released
    prior = load(folder, torch.float32, SMALL, start=start).prior
    ids, image = [7, 9, 30, 4], torch.randint(16_384, (2, 256), generator=torch.manual_seed(0))
    states, mask = encoded(halves, ids, 2)
    before = torch.cat([torch.full((2, 1), start), image[:, :-1]], 1)
    want, _ = halves["decoder"](
        attention_mask=mask, encoder_state=states, attention_state=torch.zeros(3, 8, 256, 128),
        prev_tokens=before, token_index=torch.arange(256),
    )  # fmt: skip
    got = prior(captions([], [], ids, ids), image.repeat(2, 1))
    assert want.std() > 0.5
    torch.testing.assert_close(got, want[..., : 2**14], atol=1e-4, rtol=1e-4)
    assert (got[0] - got[2]).abs().max() > 0.1  # the caption is read


def test_sampled_tokens_are_those_of_min_dalle(released):
    """The likeliest token each time, through its cache and its guidance."""
    halves, folder = released
    prior = load(folder, torch.float32, SMALL, start=16_383).prior
    ids, guidance = [7, 9, 30, 4], 3.0
    states, mask = encoded(halves, ids, 1)
    memory, tokens = torch.zeros(3, 4, 256, 128), torch.full((1, 257), 2**14 - 1)
    for i in range(256):
        tokens[:, i + 1], memory = halves["decoder"].sample_tokens(
            settings=torch.tensor([1.0, 1.0, guidance]), attention_mask=mask, encoder_state=states,
            attention_state=memory, prev_tokens=tokens[:, [i]], token_index=torch.tensor([i]),
        )  # fmt: skip
    drawn = sample(prior, ids, 1, temperature=0, guidance=guidance).flatten()
    assert torch.equal(drawn, tokens[0, 1:])
    assert len(drawn.unique()) > 10


def test_ids_of_plain_captions_are_those_of_min_dalle(tmp_path):
    write_vocabulary(tmp_path)
    theirs = peer("text_tokenizer").TextTokenizer
    pairs, vocab = merges_and_vocab()
    ours = BARTTokenizer.load(tmp_path / "vocab_mini.json", tmp_path / "merges_mini.txt")
    for text in (*WORDS, "A RED  red redred zq", ""):
        want = theirs(vocab, [" ".join(pair) for pair in pairs]).tokenize(text)
        assert [0, *ours.encode(text), 2] == want


@pytest.mark.slow
def test_the_released_detokenizer_draws_what_min_dalles_does(tmp_path):
    theirs = randomise(peer("models.vqgan_detokenizer").VQGanDetokenizer(), 3)
    torch.save(theirs.state_dict(), tmp_path / "detoker.pt")
    for half, part in (("encoder", "text_ encoder_"), ("decoder", "image_ decoder_")):
        state = {}
        for name, value in make(SMALL).prior.state_dict().items():
            if not name.startswith(tuple(part.split())):
                continue
            keys = dalle_mini._keys(name)
            state |= dict(zip(keys, value.chunk(len(keys)), strict=True))
        torch.save(state, tmp_path / f"{half}_mini.pt")
    write_vocabulary(tmp_path)
    codebook = load(tmp_path, torch.float32, SMALL).codebook
    for module in theirs.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6  # theirs is 1e-5, and the model was trained with 1e-6
    tokens = torch.randint(16_384, (1, 16, 16), generator=torch.manual_seed(0))
    want = theirs(False, tokens.view(1, -1)) / 255  # (256, 256, 3)
    torch.testing.assert_close(codebook.decode(tokens)[0].movedim(0, -1), want, atol=1e-4, rtol=0)
    assert want.std() > 0.01


# ---------------------------------------------------------------- files and words


@pytest.mark.parametrize("name, config", [("mini", MINI), ("mega", MEGA)])
def test_both_sizes_are_presets(name, config):
    preset = get_config(name)
    assert preset.dalle == config and preset.dvae == dalle_mini.CODEBOOK


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_file_must_hold_every_key_and_no_other(released, half):
    _, folder = released
    path = folder / f"{half}_mini.pt"
    state = torch.load(path)
    norm = "layers.1.self_attn_layer_norm.weight"  # a gain that the files have
    spoilt = {
        f"lacks {norm}": {k: v for k, v in state.items() if k != norm},
        "holds extra": state | {"extra": torch.zeros(1)},
        r"glu.fc1.weight is \(3, 128\), must be \(40, 128\)": (
            state | {"layers.0.glu.fc1.weight": torch.zeros(3, 128)}
        ),
    }
    for message, bad in spoilt.items():
        torch.save(bad, path)
        with pytest.raises(ValueError, match=rf"{half}_mini.pt.*{message}"):
            load(folder, torch.float32, SMALL)


def test_the_folders_of_min_dalle_and_sixteen_bits_are_read_too(released):
    _, folder = released
    (folder / "dalle_bart_mini").mkdir(), (folder / "vqgan").mkdir()
    for path in folder.glob("*_mini.*"):
        path.rename(folder / "dalle_bart_mini" / path.name.replace("_mini", ""))
    (folder / "detoker.pt").rename(folder / "vqgan" / "detoker.pt")
    parts = load(folder, torch.bfloat16, SMALL)
    assert {p.dtype for p in parts.prior.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in parts.codebook.parameters()} == {torch.float32}
    assert parts.prior.start == 16_384
    tokens = sample(parts.prior, parts.tokenizer.encode("a red fox"), 1, temperature=0)
    assert parts.codebook.decode(tokens).shape == (1, 3, 256, 256)
    (folder / "vqgan" / "detoker.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no detoker.pt or vqgan/detoker.pt in"):
        load(folder, torch.float32, SMALL)


def test_words_beyond_ascii_keep_their_letters_and_emoji_their_names():
    pairs, vocab = merges_and_vocab()
    tokenizer = BARTTokenizer(vocab, pairs)
    assert tokenizer.encode("Red Fóx") == tokenizer.encode("red fox") == [
        vocab["Ġred"], vocab["Ġfox"],
    ]  # fmt: skip
    assert tokenizer.encode("a🦊") == tokenizer.encode("a fox face")
    assert tokenizer.encode("狐") == [] and vocab["<unk>"] in tokenizer.encode("zq")
    batch = tokenizer.encode_batch(["a red fox", "a"], 2)
    assert batch.tolist() == [[vocab["Ġa"], vocab["Ġred"]], [vocab["Ġa"], PAD]]
    assert tokenizer.decode(batch[0]) == "a red" and tokenizer.decode(batch[1]) == "a"


@pytest.mark.parametrize(
    "vocab, merges, message",
    [
        ("[1, 2]", "#version\n", "vocab_mini.json is no BART vocabulary: it is no table"),
        ("{", "#version\n", "vocab_mini.json is no"),
        ('{"<s>": 5, "</s>": 2, "<unk>": 3}', "#version\n", "vocab_mini.json.*'<s>' must be 0"),
        (
            '{"<s>": 0, "</s>": 2, "<unk>": 3}',
            "#version\na b c\n",
            "merges_mini.txt.*'a b c' is not a",
        ),
    ],
)
def test_a_vocabulary_of_another_kind_is_refused(vocab, merges, message, tmp_path):
    (tmp_path / "vocab_mini.json").write_text(vocab)
    (tmp_path / "merges_mini.txt").write_text(merges)
    with pytest.raises(ValueError, match=message):
        BARTTokenizer.load(tmp_path / "vocab_mini.json", tmp_path / "merges_mini.txt")
