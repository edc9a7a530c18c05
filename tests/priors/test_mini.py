"""DALL-E mini: sizes, masks, cached against plain decoding, and one run by the usual verbs."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_prior import captions, seeded, shake

from minidalle.config import MiniConfig, from_json, get_config, to_json
from minidalle.generate import sample
from minidalle.models import build, make
from minidalle.priors.mini import Attention, GatedUnit, Mini

SMALL = MiniConfig(
    text_vocab=20, text_len=7, image_vocab=12, grid=4, n_layers=2, n_heads=2, head_dim=8,
    glu_width=20,
)  # fmt: skip


@pytest.fixture(autouse=True)
def fixed():
    torch.manual_seed(0)


def make_small(**changes) -> Mini:
    return shake(Mini(replace(SMALL, **changes))).eval()


# ---------------------------------------------------------------- sizes and selection


@pytest.mark.parametrize("name, published", [("mini", 437_962_720), ("mega", 2_587_967_488)])
def test_a_preset_has_the_published_number_of_parameters(name, published):
    with torch.device("meta"):
        model = make(get_config(name).dalle)
    assert type(model) is Mini
    assert sum(p.numel() for p in model.parameters()) == published


def test_the_configuration_chooses_the_prior_and_survives_json():
    config = get_config("mini_toy", ["dalle.n_layers=2"])
    assert from_json(to_json(config)) == config and type(config.dalle) is MiniConfig
    assert type(build(config, "dalle")) is Mini
    # Of the preset stays what both priors have.
    turned = get_config("toy", ["dalle.glu_width=336", "prior=mini"]).dalle
    assert turned == replace(config.dalle, n_layers=4, text_len=25)
    with pytest.raises(ValueError, match="'kernel'"):
        get_config("mini_toy", ["dalle.kernel=3"])
    with pytest.raises(ValueError, match="prior='maxi' is unknown; choose from dalle, mini"):
        get_config("toy", ["prior=maxi"])


def test_the_same_seed_gives_the_same_weights():
    pairs = zip(Mini(SMALL, 3).parameters(), Mini(SMALL, 3).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(Mini(SMALL, 3).image_head.weight, Mini(SMALL, 4).image_head.weight)


def test_gains_of_norms_start_at_1():
    gains = [p for name, p in Mini(SMALL).named_parameters() if name.endswith("norm.weight")]
    assert len(gains) == 2 * (4 + 6) + 4 and all((p == 1).all() for p in gains)


def test_residual_init_0_starts_attention_as_the_identity():
    model, x = Mini(replace(SMALL, residual_init=0.0)), torch.randn(1, 3, 16)
    attention = model.encoder_blocks[0].attention
    assert not attention(x, attention.keys_values(x)).any()


# ---------------------------------------------------------------- parts, beside plain formulas


def test_attention_is_the_formula_head_by_head():
    part, h, y = Attention(SMALL), torch.randn(1, 3, 16), torch.randn(1, 4, 16)
    mask = torch.tensor([True, True, False, True])
    k, v = (y[0] @ part.kv.weight.T).split(16, -1)
    q = h[0] @ part.q.weight.T
    heads = []
    for at in (slice(0, 8), slice(8, 16)):
        scores = (q[:, at] @ k[:, at].T / math.sqrt(8)).masked_fill(~mask, -math.inf)
        heads.append(scores.softmax(-1) @ v[:, at])
    want = F.layer_norm(torch.cat(heads, -1) @ part.out.weight.T, (16,))
    got = part(h, part.keys_values(y), mask[None, None, None])
    torch.testing.assert_close(got[0], want)


def test_the_gated_unit_is_its_formula():
    part, x = GatedUnit(SMALL), torch.randn(2, 3, 16)
    gate, value = part.up.weight.split(20)
    h = F.layer_norm(x, (16,))
    inner = F.layer_norm(F.gelu(h @ gate.T) * (h @ value.T), (20,))
    torch.testing.assert_close(part(x), inner @ part.down.weight.T)


@torch.no_grad()
def test_a_caption_is_framed_and_its_pads_are_not_seen():
    model, seen = make_small(), {}
    model.text_embedding.register_forward_hook(lambda m, args, out: seen.update(ids=args[0]))
    _, mask = model.encode(captions([5, 6], []))
    assert seen["ids"].tolist() == [[0, 5, 6, 2, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0]]
    assert mask[:, 0, 0].tolist() == [[True] * 4 + [False] * 3, [True] * 2 + [False] * 5]
    before = model(captions([5, 6]), torch.zeros(1, 16, dtype=torch.int64))
    model.text_positions.weight[4:] += 10  # of pads alone
    after = model(captions([5, 6]), torch.zeros(1, 16, dtype=torch.int64))
    torch.testing.assert_close(after, before)


@torch.no_grad()
def test_a_cell_sees_the_caption_and_the_cells_before_it():
    model, image = make_small(), torch.randint(12, (1, 16))
    before = model(captions([5, 6]), image)
    changed = image.clone()
    changed[0, 7] = (image[0, 7] + 1) % 12
    differs = (model(captions([5, 6]), changed) != before).any(-1)[0]
    assert differs.tolist() == [False] * 8 + [True] * 8
    assert (model(captions([5, 7]), image) != before).any(-1).all()


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("start", [0, 1, 6, 15, 16])
@pytest.mark.parametrize("copies", [1, 3])
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_at_every_step(start, copies):
    model, text, image = make_small(), captions([1, 2, 3], []), torch.randint(12, (6, 16))
    if copies == 1:
        image = image.view(2, 3, 16)[:, :1].expand(-1, 3, -1).reshape(6, 16)
    want = model(text.repeat_interleave(3, 0), image)
    decoder = model.decoder(text, 3, image.view(2, 3, 16)[:, :copies, :start])
    for cell in range(start, 16):
        got = decoder.step(image[:, cell - 1] if cell else None)
        torch.testing.assert_close(got, want[:, cell], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("p", [0, 1, 7])
@pytest.mark.parametrize("many_captions", [False, True])
def test_samples_do_not_depend_on_the_cache(guidance, p, many_captions):
    model = make_small()
    text = captions([1, 2], [3], [4, 5, 6], []) if many_captions else [1, 2]
    options = dict(guidance=guidance, prompt=torch.randint(12, (4, p)))
    draws = [
        sample(model, text, 4, generator=seeded(), use_cache=use, **options)
        for use in (True, False)
    ]
    assert torch.equal(*draws)


@torch.no_grad()
def test_samples_follow_the_likelihood():
    model = make_small(image_vocab=2, grid=2)
    model.image_head.weight.mul_(3)
    cells = torch.cartesian_prod(*[torch.arange(2)] * 4)  # all 16 images
    zero, ln_p = model.log_likelihood(captions([1]).expand(16, -1), cells)
    assert not zero.any()
    assert ln_p.exp().sum() == pytest.approx(1)
    drawn = sample(model, [1], 20_000, generator=seeded()).flatten(1)
    share = (drawn * torch.tensor([8, 4, 2, 1])).sum(1).bincount(minlength=16) / 20_000
    assert (share - ln_p.exp()).abs().max() < 0.015
    assert ln_p.exp().max() > 0.12  # far from uniform


def test_compile_is_refused():
    with pytest.raises(ValueError, match="compile"):
        sample(make_small(), [1], 1, compile=True)


# ---------------------------------------------------------------- training


def test_the_loss_is_the_mean_over_codes_and_falls():
    model, g = make_small(), seeded()
    batch = {"text": captions([1, 2], [3]), "tokens": torch.randint(12, (2, 16), generator=g)}
    loss, metrics = model.loss(batch)
    _, ln_p = model.log_likelihood(batch["text"], batch["tokens"])
    assert loss.item() == pytest.approx(-ln_p.mean().item() / 16)
    assert metrics["image_nats"] == loss
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        model.loss(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.loss(batch)[0] < 0.2 * loss
    assert model.image_head.weight.grad is None


def test_dropped_captions_are_empty_ones_and_only_in_training():
    model, image = make_small(caption_dropout=1.0), torch.randint(12, (2, 16))
    batch = {"text": captions([1, 2], [3]), "tokens": image}
    empty = {"text": model.null_text(2), "tokens": image}
    told = model.loss(batch)[0].item()
    model.train()
    dropped = model.loss(batch, generator=seeded())[0].item()
    assert dropped == pytest.approx(model.loss(empty)[0].item()) != pytest.approx(told)


def test_denoising_is_the_cross_entropy_of_hidden_tokens_alone():
    model, text = make_small(), captions([5, 6, 7], [8])
    hidden = torch.tensor([[True, False, True, True, True], [False] * 5])
    ids = torch.tensor([[1, 6, 1, -1, -1], [8, -1, -1, -1, -1]])  # 1 stands for a hidden token
    states, _ = model.encode(ids)
    ln_p = (states @ model.text_embedding.weight.T).log_softmax(-1)
    want = -(ln_p[0, 1, 5] + ln_p[0, 3, 7]) / 2
    torch.testing.assert_close(model.rebuild(text, hidden), want)
    assert model.rebuild(text, torch.zeros_like(hidden)) == 0


def test_first_only_the_encoder_learns_then_the_prior():
    model, g = make_small(denoise_steps=2, caption_dropout=0.1).train(), seeded()
    batch = {"text": captions([1, 2], [3, 4, 5]), "tokens": torch.randint(12, (2, 16), generator=g)}
    loss, metrics = model.loss(batch, 1, g)
    loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert metrics == {"text_nats": loss} and "text_positions.weight" in moved
    assert moved == {
        name for name, _ in model.named_parameters() if name.startswith(("text_", "enc"))
    }
    assert "image_nats" in model.loss(batch, 2, g)[1]
    assert "image_nats" in model.eval().loss(batch, 0)[1]  # what is measured stays the same


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected text \(B, 5\) and image \(B, 16\)"):
        make_small()(captions([1])[:, :4], torch.zeros(1, 16, dtype=torch.int64))
