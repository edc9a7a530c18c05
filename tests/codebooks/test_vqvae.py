"""The VQ-VAE against vector-quantize-pytorch, loops, finite differences and a run that stopped."""

import math

import pytest
import torch
from torch import nn

from minidalle.clip import keep_local
from minidalle.codebooks.vqvae import VQVAE, Quantizer, nearest
from minidalle.config import VQVAEConfig, get_config, replace
from minidalle.files import load_tensors
from minidalle.scale import launch
from minidalle.stages import train_stage
from minidalle.training.optim import Average
from minidalle.training.spread import k_means

TINY = VQVAEConfig(image_size=16, n_hid=8, n_blocks=1, n_pools=2, vocab_size=12, n_init=4, gain=1.0)


def quantizer(**changes):
    torch.manual_seed(0)
    made = Quantizer(replace(TINY, **changes))
    nn.init.normal_(made.embedding.weight)
    return made


def features(seed, n=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, TINY.n_init, 4, 4, generator=g)


def rows(z):
    return z.movedim(1, -1).flatten(0, 2)


def test_nearest_is_the_smallest_distance_also_under_autocast():
    z, codes = features(0), quantizer().embedding.weight.detach() / 10 + 5  # close together
    want = torch.cdist(rows(z), codes).argmin(dim=1).view(3, 4, 4)
    assert torch.equal(nearest(z, codes), want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(z, codes), want)


def test_the_quantizer_does_what_vector_quantize_pytorch_does():
    peer = pytest.importorskip(
        "vector_quantize_pytorch",
        reason="optional peer: vector-quantize-pytorch, by pip with --no-deps",
    )
    ours = quantizer(commitment=0.25, revive=0.0)
    theirs = peer.VectorQuantize(
        TINY.n_init, TINY.vocab_size, commitment_weight=0.25, rotation_trick=False,
        accept_image_fmap=True, ema_update=False,
    )  # fmt: skip
    theirs.codebook = ours.embedding.weight.detach().clone()
    mine, his = (features(1).requires_grad_() for _ in range(2))
    codes, loss = ours(mine, 0, None)
    other_codes, other_tokens, other_loss = theirs(his)
    assert torch.equal(nearest(mine, ours.embedding.weight), other_tokens)
    torch.testing.assert_close(codes, other_codes)
    torch.testing.assert_close(loss, other_loss.squeeze())
    weight = features(2)
    (codes * weight).sum().add(loss).backward()
    (other_codes * weight).sum().add(other_loss.sum()).backward()
    torch.testing.assert_close(mine.grad, his.grad)


def test_gradients_are_those_of_the_two_losses_and_the_copied_one():
    made, z, weight = quantizer(averages=False), features(0).requires_grad_(), features(3)
    tokens = nearest(z, made.embedding.weight)
    codes, loss = made(z, 0, None)
    (loss + (codes * weight).sum()).backward()
    e, x = made.embedding.weight.detach().double(), z.detach().double()
    pull = 0.25 * 2 * (x - e[tokens].movedim(-1, 1)) / x.numel()
    torch.testing.assert_close(z.grad, weight + pull.float())
    for k, d in ((int(tokens[0, 0, 0]), 0), (int(tokens[1, 2, 3]), 3)):
        moved = []  # finite differences of mean |e_k - z|^2, with the tokens held
        for step in (-1e-4, 1e-4):
            other = e.clone()
            other[k, d] += step
            moved.append((other[tokens].movedim(-1, 1) - x).square().mean())
        slope = (moved[1] - moved[0]) / 2e-4
        torch.testing.assert_close(
            made.embedding.weight.grad[k, d].double(), slope, rtol=1e-4, atol=0
        )


def test_averages_equal_a_loop():
    made, decay = quantizer(revive=0.0, decay=0.9), 0.9
    k, eps, seen = TINY.vocab_size, 1e-5, []
    for step in range(5):
        parts = features(2 * step), features(2 * step + 1)  # two parts of one update
        tokens = [nearest(z, made.embedding.weight) for z in parts]
        for z in parts:
            made(z, step, None)
        seen.append((torch.cat([rows(z) for z in parts]), torch.cat([t.flatten() for t in tokens])))
        before = made.embedding.weight.clone()
        made.after_update()
        # Weigh update s by decay^(step - s), then divide by the sum of these weights.
        ages = [decay ** (step - s) for s in range(step + 1)]
        n, m = torch.zeros(k), torch.zeros(k, TINY.n_init)
        for weight, (z, t) in zip(ages, seen, strict=True):
            for i in range(k):
                n[i] += weight * (t == i).sum() / sum(ages)
                m[i] += weight * z[t == i].sum(0) / sum(ages)
        smooth = (n + eps) / (n.sum() + k * eps) * n.sum()
        for i in range(k):
            want = m[i] / smooth[i] if n[i] > 0 else before[i]
            torch.testing.assert_close(made.embedding.weight[i], want, rtol=1e-4, atol=1e-5)
    assert not torch.equal(made.embedding.weight, before)


def test_averages_stand_still_in_evaluation_and_forget_an_update_that_was_skipped():
    made = quantizer(revive=0.0)
    before = made.embedding.weight.clone()
    made.eval()(features(0), 0, None)
    made.after_update()
    assert torch.equal(made.embedding.weight, before)
    made.train()(features(0) * math.nan, 1, None)  # its update is skipped: after_update not called
    made(features(1), 2, None)
    made.after_update()
    other = quantizer(revive=0.0)
    other(features(1), 2, None)
    other.after_update()
    assert torch.equal(made.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("averages", [True, False])
def test_a_dead_code_comes_back_as_a_feature_of_the_batch(averages):
    made = quantizer(averages=averages, revive=0.5, decay=0.8)
    with torch.no_grad():
        made.embedding.weight[7] = 1e3  # nothing is near it
    generator = torch.Generator().manual_seed(0)
    for step in range(5):  # 1 / (1 - 0.8) updates are waited for
        assert made.embedding.weight[7, 0] == 1e3
        z = features(step)
        made(z, step, generator)
        made.after_update()
    assert (rows(z) == made.embedding.weight[7]).all(dim=1).any()
    assert made.counts[7] > 0


def test_k_means_finds_the_heaps_and_lowers_the_distance():
    g = torch.Generator().manual_seed(0)
    heaps = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = heaps.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2, generator=g)
    found = k_means(points, 3, g)
    assert torch.cdist(heaps, found).min(dim=1).values.max() < 0.1
    first, later = (
        torch.cdist(points, k_means(points, 8, torch.Generator().manual_seed(1), rounds=n))
        .min(dim=1).values.square().mean()
        for n in (0, 8)
    )  # fmt: skip
    assert later < 0.9 * first


def test_the_error_is_a_mean_square_or_the_dvaes_likelihood():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    model = VQVAE(TINY).eval()
    z = model.latents(torch.randint(12, (2, 4, 4)))
    decoded = (model.decoder(z)[:, :3].sigmoid() - 0.1) / 0.8
    want = (decoded - images).square().mean() * 16
    torch.testing.assert_close(model.error(images, z), want)
    model = VQVAE(replace(TINY, likelihood="laplace", min_log_b=-1.0)).eval()
    found = model.evaluate(images, 0)
    cost = math.log(12) / 48  # nats per pixel value: 16 tokens for 768 values
    error = model.error(images, model.latents(model.tokens(images)))
    assert found["elbo"] == pytest.approx(-(error.item() + cost), rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ["codebook=vqvae"],
        ["codebook=vqvae", "dvae.averages=false", "dvae.likelihood=laplace", "train_dvae.lr=1e-3"],
        ["codebook=palette"],
        ["dvae.hard=true", "dvae.n_hid=8"],
        [  # stopped and resumed after the discriminator has begun
            "codebook=vqgan", "dvae.n_hid=4", "dvae.n_init=4", "dvae.disc_weight=0.8",
            "dvae.disc_start=2", "dvae.disc_layers=1", "dvae.disc_width=4", "dvae.revive=0.1",
        ],
    ],
)  # fmt: skip
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(overrides, tmp_path, monkeypatch):
    config = get_config(
        "toy",
        [
            *overrides, "data.n_train=64", "data.n_test=8", "train_dvae.steps=8",
            "train_dvae.warmup=2", "train_dvae.save_every=3", "train_dvae.eval_every=8",
            "train_dvae.accumulate=2", "dvae.vocab_size=32", "dalle.image_vocab=32",
        ],
    )  # fmt: skip
    if config.codebook == "vqvae":  # with averages codes revive
        config = replace(config, dvae=replace(config.dvae, n_hid=8, n_init=8, decay=0.5))
    train_stage(config, "dvae", tmp_path / "whole")

    class Killed(BaseException):
        pass

    update, calls = Average.update, []

    def die_at_the_fifth(self, step):
        update(self, step)
        calls.append(step)
        if len(calls) == 5:
            raise Killed

    monkeypatch.setattr(Average, "update", die_at_the_fifth)
    with pytest.raises(Killed):
        train_stage(config, "dvae", tmp_path / "parts")
    train_stage(config, "dvae", tmp_path / "parts")
    assert calls == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]  # went on from the checkpoint after update 3
    whole, parts = (
        load_tensors(tmp_path / n / "dvae/model.safetensors")[0] for n in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and len(whole) >= 1
    assert (config.codebook == "vqgan") == any("adversary" in name for name in whole)
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["codebook=vqvae", "dvae.n_pools=3"], "dalle.grid=8 must equal"),
        (["codebook=vqvae", "dvae.vocab_size=64"], "dalle.image_vocab=256 must equal"),
        (["codebook=palette", "dvae.n_pools=6"], "not a multiple"),
        (["codebook=vqvae", "dvae.commitment=-1"], "dvae.commitment=-1.0 must be"),
        (["codebook=vqvae", "dvae.likelihood=l1"], "choose from squares, laplace"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        get_config("toy", overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("codebook", ["vqvae", "vqgan", "palette"])
def test_several_processes_are_refused_with_one_line(codebook):
    config = get_config("toy", [f"codebook={codebook}"])
    with pytest.raises(ValueError, match=f"^codebook={codebook} is trained by one process"):
        launch._copied(config, "dvae", torch.device("cpu"))
    clip = launch._copied(config, "clip", torch.device("cpu"))  # other stages are free to
    assert clip.gather is not keep_local
