"""The VQGAN against the published sizes, min-dalle's decoder and plain loops."""

import pytest
import torch
import torch.nn.functional as F
from helpers.min_dalle import peer
from torch import nn

from minidalle.codebooks.discriminator import PatchGAN, adaptive_weight
from minidalle.codebooks.vqgan import VQGAN, AttnBlock
from minidalle.config import VQGANConfig, from_json, get_config, replace, to_json
from minidalle.models import build

F16 = VQGANConfig(n_pools=4, vocab_size=1024)
F16_LARGE = VQGANConfig(n_pools=4, vocab_size=16_384)
GUMBEL_F8 = VQGANConfig(n_pools=3, widths=(1, 1, 2, 4), vocab_size=8192, gumbel=True)
TINY = dict(image_size=16, n_hid=8, n_pools=2, n_blocks=1, vocab_size=32, n_init=8)


def tiny(**changes):
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(**TINY | changes)).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "config, encoder, decoder, everything, grid",
    [
        (F16, 29_298_176, 42_449_795, 72_141_699, 16),
        (F16_LARGE, 29_298_176, 42_449_795, 76_073_859, 16),
        (GUMBEL_F8, 26_345_728, 38_316_163, 68_995_971, 32),
    ],
)
def test_the_published_models_have_the_published_sizes(config, encoder, decoder, everything, grid):
    with torch.device("meta"):
        model = VQGAN(config)
    found = count(model.encoder), count(model.decoder), count(model)
    assert found == (encoder, decoder, everything)
    assert (model.grid, model.image_size) == (grid, 256)


def test_the_names_are_those_of_the_released_files():
    with torch.device("meta"):
        names, gumbel = set(VQGAN(F16).state_dict()), set(VQGAN(GUMBEL_F8).state_dict())
    for name in (
        "encoder.down.4.attn.1.proj_out.bias", "encoder.down.3.downsample.conv.weight",
        "encoder.down.2.block.0.nin_shortcut.weight", "encoder.mid.attn_1.q.weight",
        "decoder.up.4.attn.2.norm.weight", "decoder.up.4.upsample.conv.bias",
        "decoder.up.3.block.0.nin_shortcut.bias", "decoder.mid.block_2.conv2.weight",
        "decoder.norm_out.weight", "quant_conv.bias", "post_quant_conv.weight",
        "quantize.embedding.weight",
    ):  # fmt: skip
        assert name in names
    for name in (
        "encoder.down.4.downsample.conv.weight", "decoder.up.0.upsample.conv.weight",
        "encoder.down.3.attn.0.q.weight", "decoder.up.4.block.0.nin_shortcut.weight",
    ):  # fmt: skip
        assert name not in names
    own = {name for name in gumbel if name.startswith("quantize.")}
    assert own == {"quantize.proj.weight", "quantize.proj.bias", "quantize.embed.weight"}


@pytest.mark.slow
def test_the_decoder_computes_what_min_dalles_does():
    theirs = peer("models.vqgan_detokenizer").VQGanDetokenizer().eval()
    for module in theirs.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6  # theirs is 1e-5, and the model was trained with 1e-6
    ours = VQGAN(replace(F16_LARGE, signed=False)).eval()
    torch.manual_seed(0)
    state = {k: torch.randn_like(v) * 0.05 for k, v in theirs.state_dict().items()}
    state["decoder.conv_out.weight"] *= 3  # shades all over the range …
    state["decoder.conv_out.bias"] += 0.5  # … and few of them clipped
    theirs.load_state_dict(state)
    state["quantize.embedding.weight"] = state.pop("embedding.weight")
    left = ours.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert {k.split(".")[0] for k in left.missing_keys} == {"encoder", "quant_conv"}
    tokens = torch.randint(16_384, (1, 16, 16))
    with torch.no_grad():
        want = theirs(False, tokens.view(1, -1)) / 255  # (256, 256, 3)
        found = ours.decode(tokens)[0].movedim(0, -1)
    assert want.std() > 0.05  # not all clipped
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_attention_equals_a_loop_over_the_cells():
    torch.manual_seed(0)
    block, x = AttnBlock(8), torch.randn(2, 8, 3, 3)
    y = block.norm(x)
    q, k, v = (f(y).flatten(2) for f in (block.q, block.k, block.v))  # (B, C, 9)
    want = torch.zeros_like(q)
    for b in range(2):
        for i in range(9):
            weight = torch.stack([q[b, :, i] @ k[b, :, j] / 8**0.5 for j in range(9)]).softmax(0)
            want[b, :, i] = sum(weight[j] * v[b, :, j] for j in range(9))
    torch.testing.assert_close(block(x), x + block.proj_out(want.view(2, 8, 3, 3)))


def test_tokens_are_the_nearest_codes_and_decode_looks_them_up():
    model, images = tiny(), torch.rand(2, 3, 16, 16)
    z = model.features(images).movedim(1, -1).flatten(0, 2)  # (n, D)
    model.quantize.embedding.weight.data.copy_(z.roll(1, dims=0) + 1e-3)
    want = torch.cdist(z, model.codes).argmin(dim=1).view(2, 4, 4)
    tokens = model.tokens(images)
    assert torch.equal(tokens, want) and tokens.unique().numel() > 1
    by_hand = model.codes[tokens].permute(0, 3, 1, 2)
    torch.testing.assert_close(model.decode(tokens), model.decode_latents(by_hand).clamp(0, 1))


def test_tokens_of_the_gumbel_variant_are_the_largest_logits_without_noise():
    model, images = tiny(gumbel=True), torch.rand(2, 3, 16, 16)
    logits = model.quantize.proj(model.features(images))
    assert torch.equal(model.tokens(images), logits.argmax(dim=1))


def test_signed_models_see_and_give_pixels_around_zero():
    plain, signed, images = tiny(signed=False), tiny(), torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(signed.features(images), plain.features(2 * images - 1))
    z = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(2 * signed.decode_latents(z) - 1, plain.decode_latents(z))
    assert signed.decode(torch.zeros(1, 4, 4).long()).min() >= 0


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda m: m.tokens(torch.rand(1, 3, 16, 18)), "multiples of 4"),
        (lambda m: m.tokens(torch.rand(3, 16, 16)), "multiples of 4"),
        (lambda m: m.decode(torch.full((1, 4, 4), 32)), r"\[0, 32\)"),
        (lambda m: m.decode(torch.zeros(4, 4).long()), "B, h, w"),
        (lambda m: tiny(gumbel=True).loss({"images": torch.rand(1, 3, 16, 16)}, 0), "not trained"),
        (lambda m: tiny(widths=(1, 2)), "n_pools \\+ 1 = 3"),
    ],
)
def test_wrong_shapes_are_refused(call, part):
    with pytest.raises(ValueError, match=part):
        call(tiny())


def test_one_word_of_the_configuration_chooses_the_codebook():
    config = get_config("toy", ["dvae.n_hid=16", "codebook=vqgan", "dvae.gumbel=true"])
    assert type(config.dvae) is VQGANConfig and config.dvae.gumbel and config.dvae.n_hid == 16
    assert from_json(to_json(config)) == config
    model = build(config, "dvae")
    assert isinstance(model, VQGAN) and (model.grid, model.vocab_size) == (8, 256)
    for overrides, message in (
        (["codebook=vqgan", "dvae.tau=1"], "dvae has no 'tau'"),
        (["codebook=jpeg"], "choose from dvae, vqvae, vqgan"),
    ):
        with pytest.raises(ValueError, match=message):
            get_config("toy", overrides)


@pytest.mark.parametrize("n_layers, side, size", [(3, 2, 2_765_633), (2, 6, None), (1, 14, None)])
def test_the_discriminator_has_the_published_shape(n_layers, side, size):
    model = PatchGAN(64, n_layers)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 1, side, side)
    assert size is None or count(model) == size


def test_the_adaptive_weight_is_the_ratio_of_the_two_gradients_and_is_clamped():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    error, verdict = (3 * last).sum(), (last * torch.tensor([0.0, 2.0])).sum()
    assert adaptive_weight(error, verdict, last).item() == pytest.approx(3 * 2**0.5 / 2, rel=1e-3)
    assert adaptive_weight(error, verdict * 1e-12, last) == 1e4


GAN = dict(disc_weight=0.8, disc_start=5, disc_layers=1, disc_width=8)


def test_each_network_gets_the_gradient_of_its_own_side_only():
    model, images = tiny(**GAN).train(), torch.rand(4, 3, 16, 16)
    loss, metrics = model.loss({"images": images}, 5)
    loss.backward()
    # The discriminator: the hinge on real and decoded images, and nothing of the decoder's term.
    real = model.pixels(images)
    vectors, _ = model.quantize(model.features(images), 5, None)
    decoded = model.decoder(model.post_quant_conv(vectors))
    judge = model.adversary.discriminator
    hinge = F.relu(1 - judge(real)).mean() / 2 + F.relu(1 + judge(decoded.detach())).mean() / 2
    for p, want in zip(
        judge.parameters(), torch.autograd.grad(hinge, judge.parameters()), strict=True
    ):
        torch.testing.assert_close(p.grad, want, rtol=1e-4, atol=1e-6)
    # The decoder: its error, and the verdict with the weight that was found.
    error = (decoded - real).abs().mean()
    last = model.decoder.conv_out.weight
    own = error + metrics["weight"] * -judge(decoded).mean()
    want = torch.autograd.grad(own, last)[0]
    torch.testing.assert_close(last.grad, want, rtol=1e-4, atol=1e-6)
    pull = torch.autograd.grad(
        metrics["weight"] * judge(model.decoder(model.post_quant_conv(vectors.detach()))).mean(),
        last,
    )[0]
    wanted = (
        0.8
        * torch.autograd.grad(
            (model.decoder(model.post_quant_conv(vectors.detach())) - real).abs().mean(), last
        )[0].norm()
    )
    assert pull.norm().item() == pytest.approx(wanted.item(), rel=0.05)


def test_the_discriminator_does_not_play_before_its_start():
    model, images = tiny(**GAN).train(), torch.rand(4, 3, 16, 16)
    loss, metrics = model.loss({"images": images}, 4)
    loss.backward()
    assert all(p.grad is None for p in model.adversary.parameters())
    assert "weight" not in metrics and loss.item() == pytest.approx(
        metrics["error"].item() + metrics["quantising"].item()
    )


def test_a_model_without_a_discriminator_has_only_the_released_names():
    names = set(tiny().state_dict())
    assert not any("adversary" in name or "counts" in name for name in names)
    assert any(name.startswith("adversary.") for name in tiny(**GAN).state_dict())
