"""The dVAE against torch's own distributions, numeric integration, loops and OpenAI's package."""

import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Laplace,
    SigmoidTransform,
    TransformedDistribution,
    kl_divergence,
)

from minidalle.config import DVAEConfig, get_config, replace
from minidalle.dvae import (
    Conv2d,
    DiscreteVAE,
    codebook_use,
    gumbel_softmax,
    kl_to_uniform,
    logit_laplace_nll,
    map_pixels,
    unmap_pixels,
)
from minidalle.models import load
from minidalle.published import save_codebook
from minidalle.published.openai_dvae import load as load_released
from minidalle.published.openai_dvae import read_state
from minidalle.training.spread import spread_codes

TINY = replace(get_config("toy").dvae, n_hid=16, vocab_size=32, n_init=8)


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    model = DiscreteVAE(replace(TINY, **changes))
    for name, p in model.named_parameters():
        if name.endswith(".b"):  # they start at 0, where a missing bias would not show
            torch.nn.init.normal_(p, std=0.1)
    return model


def test_pixels_go_into_the_open_interval_and_back():
    x = torch.tensor([0.0, 0.25, 1.0])
    assert torch.allclose(map_pixels(x), torch.tensor([0.1, 0.3, 0.9]))
    assert torch.allclose(unmap_pixels(map_pixels(x)), x)
    assert torch.equal(unmap_pixels(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]))


def test_logit_laplace_is_the_law_of_a_sigmoid_of_a_laplace_variable():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1000, generator=g, dtype=torch.float64) * 0.8 + 0.1
    mu, log_b = torch.randn(2, 1000, generator=g, dtype=torch.float64)
    want = TransformedDistribution(Laplace(mu, log_b.exp()), [SigmoidTransform()]).log_prob(x)
    torch.testing.assert_close(-logit_laplace_nll(x, mu, log_b), want)


@pytest.mark.parametrize("mu, log_b", [(0.0, 0.0), (1.5, -1.0), (-2.0, -0.5)])
def test_logit_laplace_integrates_to_one(mu, log_b):
    x = torch.linspace(1e-6, 1 - 1e-6, 2_000_001, dtype=torch.float64)
    at = torch.full_like(x, mu), torch.full_like(x, log_b)
    assert torch.trapezoid(torch.exp(-logit_laplace_nll(x, *at)), x).item() == pytest.approx(
        1, abs=1e-3
    )


def test_kl_to_uniform_equals_torch_and_its_two_limits():
    logits = torch.randn(2, 7, 3, 3, dtype=torch.float64) * 3
    q = Categorical(logits=logits.permute(0, 2, 3, 1))
    uniform = Categorical(logits=torch.zeros_like(q.logits))
    torch.testing.assert_close(kl_to_uniform(logits), kl_divergence(q, uniform))
    assert kl_to_uniform(torch.zeros(1, 8, 1, 1)).abs().max() < 1e-6
    one_hot = torch.zeros(1, 8, 1, 1)
    one_hot[0, 3] = 100
    assert kl_to_uniform(one_hot).item() == pytest.approx(math.log(8), abs=1e-5)


def test_the_largest_gumbel_logit_falls_as_the_softmax_says():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])[None, :, None, None].expand(1, 4, 200, 200)
    drawn = gumbel_softmax(logits, 1.0, torch.Generator().manual_seed(0)).argmax(1)
    share = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    want = logits[0, :, 0, 0].softmax(0)
    error = (want * (1 - want) / drawn.numel()).sqrt()
    assert ((share - want).abs() < 4 * error).all()


def test_gumbel_softmax_is_soft_and_sharpens_as_tau_falls():
    logits = torch.randn(8, 16, 4, 4)
    largest = []
    for tau in (1.0, 1 / 4, 1 / 16):
        y = gumbel_softmax(logits, tau, torch.Generator().manual_seed(0))
        assert torch.allclose(y.sum(1), torch.ones(8, 4, 4), atol=1e-5)
        largest.append(y.max(1).values.mean().item())
    assert largest[0] < largest[1] < largest[2] < 1  # never a hard one-hot
    with pytest.raises(ValueError, match="tau must be positive, got 0"):
        gumbel_softmax(logits, 0)


def test_gumbel_noise_is_finite_even_where_the_uniform_draw_is_extreme(monkeypatch):
    ends = torch.tensor([0.0, 1 - 2**-24]).view(1, 2, 1, 1)
    monkeypatch.setattr(torch, "rand", lambda *a, **k: ends.clone())
    assert gumbel_softmax(torch.zeros(1, 2, 1, 1), 1.0).isfinite().all()


def test_the_paper_size_has_the_published_parameters():
    with torch.device("meta"):
        model = DiscreteVAE(DVAEConfig())
    assert sum(p.numel() for p in model.encoder.parameters()) == 53_786_240
    assert sum(p.numel() for p in model.decoder.parameters()) == 43_829_766
    names = dict(model.encoder.named_parameters())
    assert names["blocks.group_2.block_1.id_path.w"].shape == (512, 256, 1, 1)
    assert model.encoder.blocks.group_1.block_1.gain == 1 / 64


def test_loss_is_the_papers_sum_over_values():
    model, images = tiny(), torch.rand(2, 3, 32, 32)
    loss, metrics = model.loss({"images": images}, 700, torch.Generator().manual_seed(3))
    tau, beta = model.schedule(700)
    logits = model.logits(images)
    last = logits.permute(0, 2, 3, 1)  # (B, h, w, K): noise is drawn in this order
    codes = gumbel_softmax(last, tau, torch.Generator().manual_seed(3), dim=-1)
    mu, log_b = model.decoder(codes.permute(0, 3, 1, 2)).chunk(2, 1)
    dist = TransformedDistribution(Laplace(mu, log_b.clamp(min=0).exp()), [SigmoidTransform()])
    nll = -dist.log_prob(map_pixels(images)).sum()
    q = Categorical(logits=logits.permute(0, 2, 3, 1))
    kl = kl_divergence(q, Categorical(logits=torch.zeros_like(q.logits))).sum()
    torch.testing.assert_close(loss, (nll + beta * kl) / images.numel())
    assert metrics["tau"] == tau and metrics["beta"] == beta


def test_weights_start_with_the_variance_of_their_fan_in():
    torch.manual_seed(0)
    assert Conv2d(64, 48, 3).w.std().item() == pytest.approx(1 / math.sqrt(64 * 9), rel=0.02)


def test_psnr_is_of_the_reconstruction_that_stage_two_will_see():
    model, images = tiny().eval(), torch.rand(2, 3, 32, 32)
    error = (model.decode(model.tokens(images)) - images).square().mean().item()
    found = model.evaluate(images, 0, torch.Generator().manual_seed(0))
    assert found["psnr"] == pytest.approx(10 * math.log10(1 / error), rel=1e-5)


def test_schedules_end_where_the_paper_says():
    model = DiscreteVAE(TINY)
    model.config = DVAEConfig()
    assert model.schedule(0) == (1, 0)
    assert model.schedule(5_000)[1] == pytest.approx(6.6)
    assert model.schedule(75_000)[0] == pytest.approx((1 + 1 / 16) / 2)  # half way down
    assert model.schedule(3_000_000) == pytest.approx((1 / 16, 6.6))


def test_decode_looks_up_what_one_hot_codes_would_give():
    model = tiny()
    tokens = torch.randint(0, 32, (2, 8, 8))
    one_hot = torch.nn.functional.one_hot(tokens, 32).permute(0, 3, 1, 2).float()
    mu = model.decoder(one_hot).chunk(2, 1)[0]
    torch.testing.assert_close(model.decode(tokens), unmap_pixels(mu.sigmoid()))


def test_tokens_have_no_noise_and_batch_does_not_matter():
    model, images = tiny(), torch.rand(4, 3, 32, 32)
    tokens = model.tokens(images)
    assert torch.equal(tokens, model.tokens(images))
    assert torch.equal(tokens[1:2], model.tokens(images[1:2]))
    assert tokens.shape == (4, 8, 8) and tokens.dtype == torch.int64


def test_one_token_sees_the_papers_receptive_field():
    with torch.no_grad():
        model = DiscreteVAE(replace(TINY, image_size=256, n_pools=3, n_blocks=2))
    images = torch.rand(1, 3, 256, 256, requires_grad=True)
    model.logits(images)[0, :, 16, 16].sum().backward()
    seen = images.grad.abs().sum((0, 1)) > 0
    rows = seen.any(1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 <= 194
    assert rows[-1] - rows[0] + 1 > 100  # max-pooling passes gradient to one cell in four


def test_codebook_use_counts_codes_and_their_entropy():
    use = codebook_use(torch.tensor([[0, 0, 1, 1]]), 8)
    assert use["codes_used"] == 2 and use["perplexity"] == pytest.approx(2)


def released_pair(tmp_path):
    """Files as OpenAI published them, with random weights and biases."""
    dall_e = pytest.importorskip("dall_e", reason="optional peer: pip install --no-deps DALL-E")
    from dall_e.decoder import Decoder
    from dall_e.encoder import Encoder

    encoder = Encoder(n_hid=64, vocab_size=512, n_blk_per_group=2)
    decoder = Decoder(n_hid=64, vocab_size=512, n_blk_per_group=2)
    for module in (encoder, decoder):
        for name, p in module.named_parameters():
            p.requires_grad_(False)
            if name.endswith(".b"):
                p.normal_(std=0.1)
    torch.save(encoder, tmp_path / "encoder.pkl")
    torch.save(decoder, tmp_path / "decoder.pkl")
    return dall_e, encoder, decoder


def test_the_released_dvae_is_converted_and_equals_openais_code(tmp_path):
    dall_e, encoder, decoder = released_pair(tmp_path)
    save_codebook(load_released(tmp_path).codebook, tmp_path / "dvae")
    model = load(tmp_path, "dvae")
    images = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        want = encoder(dall_e.map_pixels(images))
        torch.testing.assert_close(model.logits(images), want, rtol=0, atol=1e-6)
        tokens = want.argmax(1)
        one_hot = torch.nn.functional.one_hot(tokens, 512).permute(0, 3, 1, 2).float()
        want = dall_e.unmap_pixels(torch.sigmoid(decoder(one_hot)[:, :3]))
        torch.testing.assert_close(model.decode(tokens), want, rtol=0, atol=1e-5)


def test_swapped_files_are_refused(tmp_path):
    released_pair(tmp_path)
    (tmp_path / "encoder.pkl").rename(tmp_path / "aside")
    (tmp_path / "decoder.pkl").rename(tmp_path / "encoder.pkl")
    (tmp_path / "aside").rename(tmp_path / "decoder.pkl")
    with pytest.raises(ValueError, match=r"encoder\.pkl"):
        load_released(tmp_path)


def test_tokens_beyond_the_codes_are_refused():
    model, cells = tiny(vocab_size=16), torch.zeros(1, 4, 4, dtype=torch.long)
    model.decode(cells + 15)
    for wrong in (cells + 16, cells - 1):
        with pytest.raises(ValueError, match=r"tokens must lie in \[0, 16\)"):
            model.decode(wrong)


HOSTILE = b"cbuiltins\nprint\n(S'this ran'\ntR."  # a pickle that prints


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 half a zip", HOSTILE])
def test_other_files_are_named_and_not_run(tmp_path, content, capsys):
    path = tmp_path / "encoder.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"encoder\.pkl is no readable checkpoint, and was not"):
        read_state(path)
    assert not capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no file"):
        read_state(tmp_path / "missing.pkl")


def test_spread_codes_name_each_chosen_cell_by_its_own_code():
    model = tiny(vocab_size=16)
    images = torch.rand(8, 3, 32, 32)
    assert codebook_use(model.tokens(images), 16)["codes_used"] < 16
    spread_codes(model, images, torch.Generator().manual_seed(0))
    assert codebook_use(model.tokens(images), 16)["codes_used"] == 16
    # A token is the nearest centre: recompute by distances, from the weights that were set.
    conv = model.encoder.blocks.output.conv
    features = model.encoder.blocks[:-1](map_pixels(images)).relu().permute(0, 2, 3, 1)
    scale = -conv.w[:, :, 0, 0].square().sum(1) / conv.b / 4  # |2c/s|^2 / (4 |c|^2/s) = 1/s
    centres = conv.w[:, :, 0, 0] / scale[:, None] / 2
    nearest = torch.cdist(features.flatten(0, 2), centres).argmin(1).view(8, 8, 8)
    assert (nearest == model.tokens(images)).float().mean() > 0.999


def test_it_reads_and_draws_images_of_any_multiple_of_its_pools():
    model = DiscreteVAE(replace(get_config("toy").dvae, n_hid=8, n_init=8)).eval()
    tokens = model.tokens(torch.rand(2, 3, 24, 40))
    assert tokens.shape == (2, 6, 10) and model.decode(tokens).shape == (2, 3, 24, 40)
    with pytest.raises(ValueError, match=r"multiples of 4, got .*30"):
        model.tokens(torch.rand(2, 3, 32, 30))


def test_the_bound_of_sampled_codes_is_below_the_exact_likelihood():
    """Two codes, one cell: ln p(x) = ln (p(x | 0) + p(x | 1)) / 2 is at hand."""
    model = DiscreteVAE(replace(get_config("toy").dvae, vocab_size=2, n_hid=8, n_init=8)).eval()
    images, generator = torch.rand(1, 3, 4, 4), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.encoder.blocks.output.conv.w.mul_(0.1)  # q is far from certain
        found = [model.evaluate(images, 10**6, generator)["elbo"] for _ in range(400)]
        x, exact = map_pixels(images), []
        for code in (0, 1):
            vectors = model.code_vectors(torch.full((1, 1, 1), code))
            mu, log_b = model.decode_vectors(vectors)
            exact.append(-logit_laplace_nll(x, mu, log_b).sum() - math.log(2))
    bound, limit = 48 * sum(found) / len(found), torch.stack(exact).logsumexp(0).item()
    assert bound <= limit + 0.05


def test_hard_codes_are_one_hot_forward_and_relaxed_backward():
    soft, hard = tiny(tau_steps=1, tau=0.5), tiny(tau_steps=1, tau=0.5, hard=True)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def codes_of(model):
        seen = []
        own = model.mix_vectors
        model.mix_vectors = lambda codes: (seen.append(codes), own(codes))[1]
        model.loss({"images": images}, 1, torch.Generator().manual_seed(2))
        return seen[0]

    relaxed, drawn = codes_of(soft), codes_of(hard)
    assert set(drawn.detach().round(decimals=5).unique().abs().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn.argmax(-1), relaxed.argmax(-1))
    weight = torch.randn(relaxed.shape, generator=torch.Generator().manual_seed(3))
    gradients = [
        torch.autograd.grad((codes * weight).sum(), model.encoder.blocks.output.conv.w)[0]
        for codes, model in ((relaxed, soft), (drawn, hard))
    ]
    torch.testing.assert_close(*gradients)
