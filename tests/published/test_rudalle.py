"""ruDALL-E against its own code, a plain loop over the fact sheet, and YouTokenToMe."""

import importlib
import sys
import types
from importlib.util import find_spec
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle import published
from minidalle.codebooks.vqgan import VQGAN
from minidalle.config import VQGANConfig, replace
from minidalle.generate import sample
from minidalle.published import rudalle
from minidalle.published.causal import Sizes, cell_mask
from minidalle.published.rudalle import YTTM, RuDALLE
from minidalle.tokenizer import PAD

GRID = 13  # wider than the convolution's 11, so that all masks differ
SMALL = Sizes(
    width=32, n_layers=3, n_heads=2, caption_len=6, text_vocab=16, grid=GRID, image_vocab=24
)


def random_state(version: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = RuDALLE(SMALL, version).state_dict()
    noise = {k: torch.randn_like(v) * (0.2 if v.ndim == 1 else 0.5) for k, v in state.items()}
    return {k: v + (v.ndim == 1 and k.endswith("weight")) for k, v in noise.items()}


def ours(version: int) -> RuDALLE:
    model = RuDALLE(SMALL, version).eval()
    model.load_state_dict(random_state(version))
    return model


def batch(n: int = 2):
    torch.manual_seed(1)
    text = torch.randint(4, 16, (n, 6))
    text[0, 4:] = PAD
    return text, torch.randint(24, (n, GRID**2))


@pytest.fixture(scope="module")
def theirs():
    """The released code's model file, without what the package's __init__ would import."""
    spec = find_spec("rudalle")
    if spec is None or find_spec("einops") is None:
        pytest.skip("optional peer: pip install --no-deps rudalle einops")
    path = spec.submodule_search_locations[0]
    packages = {}
    for name, place in (("rudalle", path), ("rudalle.dalle", f"{path}/dalle")):
        packages[name] = types.ModuleType(name)
        packages[name].__path__ = [place]
    with mock.patch.dict(sys.modules, packages):
        return importlib.import_module("rudalle.dalle.model").DalleModel


@pytest.mark.parametrize("version", [2, 3])
@torch.no_grad()
def test_logits_and_samples_are_those_of_the_released_code(theirs, version):
    s, model = SMALL, ours(version)
    peer = theirs(
        "cpu", s.n_layers, s.text_vocab + s.caption_len, s.width, s.n_heads, 0, 0, 0,
        s.caption_len, s.grid, s.image_vocab, cogview_sandwich_layernorm=True,
        cogview_pb_relax=True, is_bool_mask=True, hf_version=f"v{version}",
    ).eval()  # fmt: skip
    left = peer.load_state_dict(random_state(version), strict=False)
    assert not left.unexpected_keys and all("mask" in name for name in left.missing_keys)
    text, image = batch()
    length, words = s.caption_len + s.grid**2, s.text_vocab + s.caption_len
    mask = torch.ones(2, 1, length, length).tril()
    ids = torch.cat([text.clamp(min=0), image], 1)
    logits, _ = peer(ids, mask)
    if version == 3:
        logits = logits[:, :-1]  # after the last token there is nothing to predict
    first = s.caption_len - (version == 3)  # the state that predicts image token 0
    want_text, want_image = logits[:, :first, :words], logits[:, first:, words:]
    found_text, found_image = model(text, image)
    torch.testing.assert_close(found_image, want_image, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_text, want_text, rtol=1e-4, atol=1e-4)
    # The likeliest tokens, one after another, as its pipeline takes them.
    out = ids[:1, : s.caption_len]
    for _ in range(40):
        out = torch.cat([out, peer(out, mask[:1])[0][:, -1:, words:].argmax(-1)], 1)
    caption = text[0][text[0] != PAD]
    tokens = sample(model, caption, 1, temperature=0).flatten()
    assert tokens.unique().numel() > 5
    assert torch.equal(tokens[:40], out[0, s.caption_len :])


def by_loop(state, version, text, image):
    """Logits of one stream, state by state, from the fact sheet. Returns (states, all columns)."""
    s, half, N = SMALL, 5, GRID**2
    ids = [t if t > 0 else s.text_vocab + p for p, t in enumerate(text.tolist())]
    ids = [2, *ids] if version == 2 else ids
    x = [state["text_embeddings.weight"][t] + state["text_pos_embeddings.weight"][p]
         for p, t in enumerate(ids)]  # fmt: skip
    for j, token in enumerate(image.tolist()[:-1]):
        row, column = divmod(j, s.grid)
        place = state["image_row_embeddings.weight"][row]
        place = place + state["image_col_embeddings.weight"][column]
        x.append(state["image_embeddings.weight"][token] + place)

    def sees(layer, q, k):
        q, k = q - s.caption_len, k - s.caption_len
        if q < k or k < 0:
            return q >= k
        if layer % 4 == 1:
            return (q - k) % s.grid == 0
        if layer < s.n_layers - 1:
            return q - k <= s.grid
        for a, b in zip(divmod(q, s.grid), divmod(k, s.grid), strict=True):
            apart = abs(a - b)
            if (min(apart, s.grid - apart) if version == 2 else apart) > half:
                return False
        return True

    def norm(name, x):
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
        return x * state[name + ".weight"] + state[name + ".bias"]

    def linear(name, x):
        return state[name + ".weight"] @ x + state[name + ".bias"]

    for i in range(s.n_layers):
        at = f"transformer.layers.{i}."
        qkv = [linear(at + "attention.query_key_value", norm(at + "input_layernorm", y)) for y in x]
        q, k, v = (torch.stack(part) for part in zip(*(y.chunk(3) for y in qkv), strict=True))
        for p in range(len(x)):
            keys = [r for r in range(p + 1) if sees(i, p, r)]
            heads = []
            for h in range(s.n_heads):
                part = slice(h * 16, h * 16 + 16)
                weights = ((k[keys, part] @ q[p, part]) / 4).softmax(0)
                heads.append(weights @ v[keys, part])
            seen = linear(at + "attention.dense", torch.cat(heads))
            x[p] = x[p] + norm(at + "before_first_addition_layernorm", seen)
        for p in range(len(x)):
            y = linear(at + "mlp.dense_h_to_4h", norm(at + "post_attention_layernorm", x[p]))
            y = 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
            y = linear(at + "mlp.dense_4h_to_h", y)
            x[p] = x[p] + norm(at + "before_second_addition_layernorm", y)
    x = [norm("to_logits.0", norm("transformer.final_layernorm", y)) for y in x]
    return torch.stack([linear("to_logits.1", y) for y in x])[-N:, s.text_vocab + s.caption_len :]


@pytest.mark.parametrize("version", [2, 3])
@torch.no_grad()
def test_logits_equal_a_plain_loop(version):
    text, image = batch()
    want = by_loop(random_state(version), version, text[0], image[0])
    _, found = ours(version)(text, image)
    torch.testing.assert_close(found[0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("start", [0, 1, 100])
@torch.no_grad()
def test_the_decoder_gives_the_logits_of_the_whole_stream(version, start):
    model, (text, image) = ours(version), batch()
    _, want = model(text.repeat_interleave(3, 0), image.repeat_interleave(3, 0))
    decoder = model.decoder(text, 3, image[:, None, :start])
    tokens = image.repeat_interleave(3, 0)
    for cell in range(start, start + 60):
        found = decoder.step(tokens[:, cell - 1] if cell else None)
        torch.testing.assert_close(found, want[:, cell], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_likelihoods_are_sums_of_log_probabilities_and_the_empty_caption_is_framed():
    model, (text, image) = ours(3), batch()
    words, image_ln = model.log_likelihood(text, image)
    text_logits, image_logits = model(text, image)
    ids = [*text[0, :4].tolist(), 16 + 4, 16 + 5]  # two pads, each an id of its own
    by_hand = sum(text_logits[0, i].log_softmax(0)[ids[i + 1]] for i in range(5))
    assert words[0].item() == pytest.approx(by_hand.item(), abs=1e-4)
    by_hand = sum(image_logits[0, i].log_softmax(0)[t] for i, t in enumerate(image[0]))
    assert image_ln[0].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert model.null_text(2).tolist() == [[2, 3, PAD, PAD, PAD, PAD]] * 2
    with pytest.raises(ValueError, match="not offered"):
        model.decoder(text, 1, image[:, None, :0], cached=False)


def test_the_masks_of_the_last_layer_are_a_window_and_a_torus():
    window, torus = cell_mask("window", GRID), cell_mask("torus", GRID)
    cell = 12 * GRID + 12  # the last: its window is a corner, its torus wraps around
    seen = torch.zeros(GRID, GRID, dtype=torch.bool)
    seen[7:, 7:] = True
    assert torch.equal(window[cell].view(GRID, GRID), seen)
    near = torch.tensor([d in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12) for d in range(GRID)])
    assert torch.equal(torus[cell].view(GRID, GRID), near[:, None] & near[None])


# ---------------------------------------------------------------- the tokenizer

TEXTS = ["авокадо кресло", "кресло в форме авокадо", "рыжий кот", "кот и кресло", "a cat"]


def model_file(path) -> None:
    """Write a model in the library's form: ids of characters, rules, special ids."""
    characters = {c: i for i, c in enumerate("▁котреслвад", start=4)}
    n = 4 + len(characters)
    rules = [(4, 5, n), (n, 6, n + 1), (n + 1, 7, n + 2), (8, 9, n + 3), (5, n + 3, n + 4)]
    lines = [f"{len(characters)} {len(rules)}"]
    lines += [f"{ord(c)} {i}" for c, i in characters.items()]
    lines += [" ".join(map(str, rule)) for rule in rules]
    path.write_text("\n".join([*lines, "1 0 2 3", ""]))


def test_words_start_with_a_mark_and_runs_of_the_unknown_are_one_token(tmp_path):
    model_file(tmp_path / "bpe.model")
    tokenizer = YTTM.load(tmp_path / "bpe.model")
    assert tokenizer.vocab_size == 11 + 5 + 4
    assert tokenizer.encode(" Кот\n") == [2, 17, 3]  # '▁кот', by three rules
    assert tokenizer.encode("xyzк") == [2, 4, 1, 5, 3]
    assert tokenizer.encode("  ") == []
    batch = tokenizer.encode_batch(["кот", "xyzк кот"], 4)
    assert batch.tolist() == [[2, 17, 3, -1], [2, 4, 1, 5]]  # a long one loses its end, as released
    assert tokenizer.decode(batch[0]) == "кот" and tokenizer.decode([2, 17, 17, 3]) == "кот кот"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A model that YouTokenToMe learnt, in it and in our reader."""
    yttm = pytest.importorskip("youtokentome")
    folder = tmp_path_factory.mktemp("yttm")
    (folder / "texts.txt").write_text("\n".join(TEXTS * 4), encoding="utf-8")
    yttm.BPE.train(str(folder / "texts.txt"), str(folder / "bpe.model"), 60, n_threads=1)
    return yttm.BPE(str(folder / "bpe.model"), n_threads=1), YTTM.load(folder / "bpe.model")


def test_encoding_is_youtokentomes(library):
    peer, tokenizer = library
    assert tokenizer.vocab_size == peer.vocab_size()

    @settings(deadline=None)
    @given(st.text("авокдреслтый фишж▁ \tz-") | st.text(st.characters(codec="utf-8")))
    def check(text):
        text = text.replace("\0", "")  # the end of a text for the library
        ids = peer.encode([text.lower().strip()])[0]
        assert tokenizer.encode(text) == ([2, *ids, 3] if ids else [])
        assert tokenizer.decode(ids) == peer.decode([ids], ignore_ids=[1])[0].strip()

    check()


@pytest.mark.parametrize(
    "content, why",
    [
        ("", "not enough values"),
        ("1 1\n9601 4\n4 4 5\n1 0 2", "holds 8 numbers, not 9"),
        ("1 0\n97 4\n1 0 2 3", "no id for '▁'"),
        ("1 0\n9601 4\n0 1 2 3", r"are \[0, 1, 2, 3\]"),
        ("pickle", "invalid literal"),
    ],
)
def test_a_file_that_is_no_model_is_named(tmp_path, content, why):
    (tmp_path / "bpe.model").write_text(content)
    with pytest.raises(ValueError, match=rf"bpe\.model is no YouTokenToMe model: .*{why}"):
        YTTM.load(tmp_path / "bpe.model")


def test_a_folder_is_loaded_and_what_is_wrong_in_it_is_named(tmp_path, monkeypatch):
    tiny = VQGANConfig(
        image_size=16, n_hid=8, n_pools=2, n_blocks=1, vocab_size=24, n_init=8, gumbel=True
    )
    monkeypatch.setattr(rudalle, "GUMBEL_F8", tiny)
    sizes = replace(SMALL, text_vocab=20, grid=4)
    torch.manual_seed(0)
    state = RuDALLE(sizes, 3).state_dict() | {"transformer.row_mask": torch.ones(3)}
    torch.save(state, tmp_path / "weights.bin")
    torch.save({"state_dict": VQGAN(tiny).state_dict()}, tmp_path / rudalle.CODEBOOK)
    model_file(tmp_path / rudalle.VOCABULARY)

    def load(dtype=torch.float32, **options):
        return rudalle.load(tmp_path, dtype, "weights.bin", sizes, **options)

    parts = load(torch.bfloat16)
    assert parts.prior.to_logits[1].weight.dtype == torch.bfloat16
    assert parts.codebook.decoder.conv_in.weight.dtype == torch.float32
    tokens = sample(parts.prior, parts.tokenizer.encode("кот"), 2)
    assert parts.codebook.decode(tokens).shape == (2, 3, 16, 16)
    state["more"] = torch.ones(1)
    torch.save(state, tmp_path / "weights.bin")
    with pytest.raises(ValueError, match=r"weights\.bin holds more, which"):
        load()
    with pytest.raises(ValueError, match=r"bpe\.model makes 20 ids, but the prior embeds 16384"):
        rudalle.load(tmp_path, torch.float32, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        load()


def test_the_siblings_are_rows_of_the_table():
    versions = {name: row.make.keywords.get("version", 3) for name, row in
                published.CHECKPOINTS.items() if name.startswith("rudalle")}  # fmt: skip
    assert versions == {
        "rudalle-malevich": 3, "rudalle-malevich-v2": 2, "rudalle-emojich": 2,
        "rudalle-surrealist": 3, "rudalle-kandinsky": 3,
    }  # fmt: skip
