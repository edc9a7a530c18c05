"""Schedules against torch's and the paper's numbers; AdamW and averages against torch and loops."""

import copy
import importlib
import math

import pytest
import torch
from torch import nn

from minidalle.config import (
    TrainConfig,
    get_config,
    half_cosine,
)
from minidalle.dalle import DALLE
from minidalle.training.checkpoints import pack, unpack_optimizer
from minidalle.training.optim import (
    AdamW,
    Average,
    clip_gradients,
    learning_rate,
    make_optimizer,
    parameter_groups,
)


def test_half_cosine_starts_ends_and_is_halfway_in_the_middle():
    assert half_cosine(1, 1 / 16, 0, 1000) == 1
    assert half_cosine(1, 1 / 16, 500, 1000) == pytest.approx((1 + 1 / 16) / 2)
    assert half_cosine(1, 1 / 16, 250, 1000) == pytest.approx(1 / 16 + 15 / 16 * (1 + 2**-0.5) / 2)
    assert [half_cosine(0, 6.6, s, 1000) for s in (1000, 5000)] == [6.6, 6.6]
    assert half_cosine(0, 6.6, 0, 0) == 6.6  # a schedule of no length is over


def test_rate_equals_torch_warmup_and_cosine():
    config = TrainConfig(steps=50, batch_size=1, lr=0.3, lr_end=0.02, warmup=9)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler
    warm = schedule.LinearLR(optimizer, start_factor=0.1, total_iters=9)
    cosine = schedule.CosineAnnealingLR(optimizer, T_max=41, eta_min=0.02)
    both = schedule.SequentialLR(optimizer, [warm, cosine], milestones=[9])
    for step in range(50):
        assert learning_rate(step, config) == pytest.approx(both.get_last_lr()[0]), step
        optimizer.step()
        both.step()


def test_rate_of_the_paper_prior_is_halved_five_times():
    dalle = get_config("12b").train_dalle
    rates = {s: learning_rate(s, dalle) for s in (4_999, 5_000, 199_999, 200_000, 429_999)}
    want = [4.5e-4, 4.5e-4, 4.5e-4, 2.25e-4, 1.406e-5]
    assert [*rates.values()] == pytest.approx(want, rel=1e-3)
    assert learning_rate(0, get_config("12b").train_dalle) < 1e-6


def test_rate_of_the_paper_dvae_stays_at_its_end_after_its_cosine():
    rates = [learning_rate(s, get_config("12b").train_dvae) for s in (0, 1_200_000, 2_999_999)]
    assert rates == [1e-4, 1.25e-6, 1.25e-6]


class Zoo(nn.Module):
    """One parameter of every kind that the three models hold."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.score = nn.Linear(4, 1)  # its weight is a row, and still a weight
        self.conv = nn.Conv2d(3, 2, 3)
        self.token_embedding = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.w = nn.Parameter(torch.zeros(2, 3, 1, 1))  # the published dVAE's name of a kernel
        self.b = nn.Parameter(torch.zeros(2))
        self.text_projection = nn.Parameter(torch.zeros(4, 5))  # CLIP's
        self.class_embedding = nn.Parameter(torch.zeros(4))
        self.positional_embedding = nn.Parameter(torch.zeros(6, 4))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.pads = nn.Parameter(torch.zeros(6, 4))
        self.start = nn.Parameter(torch.zeros(1, 1, 4))
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
        self.tied = self.linear


def test_only_matrices_and_kernels_decay():
    decay, keep = parameter_groups(Zoo(), 0.1)
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.1, 0.0)
    assert {name for name, _ in decay["params"]} == {
        "linear.weight", "score.weight", "conv.weight", "w", "text_projection",
        "attention.in_proj_weight", "attention.out_proj.weight",
    }  # fmt: skip
    names = [name for group in (decay, keep) for name, _ in group["params"]]
    assert sorted(names) == sorted(n for n, p in Zoo().named_parameters() if p.requires_grad)


@pytest.mark.parametrize("stage", ["dvae", "dalle", "clip"])
def test_in_every_model_layers_decay_and_gains_biases_embeddings_do_not(stage):
    module = importlib.import_module(f"minidalle.{stage}")
    kind = {"dvae": "DiscreteVAE", "dalle": "DALLE", "clip": "CLIP"}[stage]
    model = getattr(module, kind)(getattr(get_config("toy"), stage))
    decays = {id(p) for _, p in parameter_groups(model, 0.1)[0]["params"]}
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            assert id(m.weight) in decays and id(m.bias) not in decays
        if isinstance(m, nn.LayerNorm | nn.Embedding):
            assert not decays & {id(p) for p in m.parameters()}
    for name, p in model.named_parameters():
        if p.ndim < 2 or "position" in name or "embedding" in name:
            assert id(p) not in decays, name


def _two_optimizers(make_mine, make_theirs, grad_of, steps=60, dtype=torch.float32):
    """Run both on equal parameters with equal gradients; return both lists of parameters."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (5,), (3, 4), (2, 3, 3, 3)]
    mine = [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]
    theirs = copy.deepcopy(mine)
    a, b = make_mine(mine), make_theirs(theirs)
    for step in range(steps):
        for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            p.grad = grad_of(step, i, p.shape, generator, dtype)
            q.grad = None if p.grad is None else p.grad.clone()
        a.step()
        b.step()
    return mine, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_clipping_adamw_is_torch_adamw_bit_for_bit(dtype):
    def grad(step, i, shape, generator, dtype):
        if i == 1 and step % 3:  # one parameter has a gradient now and then only
            return None
        return torch.randn(shape, generator=generator, dtype=dtype)

    options = dict(lr=3e-3, betas=(0.9, 0.96), eps=1e-8, weight_decay=0.045)
    mine, theirs = _two_optimizers(
        lambda p: AdamW(p, **options), lambda p: torch.optim.AdamW(p, **options), grad, dtype=dtype
    )
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


def test_the_second_moment_is_clipped_before_it_is_used():
    """Against the update of one number written out: v = min(b2 v + (1 - b2) g^2, 5)."""
    p = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = AdamW([p], lr=0.1, betas=(0.9, 0.96), eps=1e-8, weight_decay=0.5, clip_variance=5)
    m = v = 0.0
    want, clipped = 1.0, 0
    for t, g in enumerate([1.0, 50.0, -3.0, 0.0, 20.0, 0.1], start=1):
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.96 * v + 0.04 * g * g
        clipped += v > 5
        v = min(v, 5)
        step = (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.96**t)) + 1e-8)
        want = want * (1 - 0.1 * 0.5) - 0.1 * step
        assert p.item() == pytest.approx(want, rel=1e-12)
    assert clipped == 3


def test_adamw_goes_on_from_its_state_dict():
    model = nn.Linear(3, 2)
    config = TrainConfig(steps=1, batch_size=1, lr=0.1, weight_decay=0.1, clip_variance=0.01)
    optimizer = make_optimizer(model, config)

    def update(model, optimizer, x):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    update(model, optimizer, x)
    other = copy.deepcopy(model)
    resumed = make_optimizer(other, config)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        update(model, optimizer, x)
        update(other, resumed, x)
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


@pytest.mark.parametrize("max_norm", [0.5, 4.0, 0.0])
def test_clip_gradients_is_torch_clipping_and_0_only_measures(max_norm):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (2, 2), (1,)]
    mine, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in "ab")
    for p, q in zip(mine[:2], theirs[:2], strict=True):  # the third has no gradient
        p.grad = torch.randn(p.shape, generator=generator)
        q.grad = p.grad.clone()
    norm = clip_gradients(mine, max_norm)
    want = nn.utils.clip_grad_norm_(theirs, max_norm or math.inf)
    assert norm == want and mine[2].grad is None
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(mine[:2], theirs[:2], strict=True))


@pytest.mark.parametrize("every", [1, 3])
def test_average_is_the_loop(every):
    model = nn.Linear(2, 2)
    average = Average(model, decay=0.9, every=every)
    want = model.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    decays = []
    for step in range(300):
        model.weight.data = torch.randn(2, 2, generator=generator)
        average.update(step)
        if (step + 1) % every == 0:
            n = len(decays) + 1
            decays.append(min(0.9, (1 + n) / (10 + n)))
            want = decays[-1] * want + (1 - decays[-1]) * model.weight.detach()
    assert decays[0] == 2 / 11 and decays[-1] == 0.9
    assert torch.allclose(average.state_dict()["weight"], want, atol=1e-6)
    assert average.state_dict()["bias"].equal(model.bias)


def test_average_forgets_the_random_start_of_a_short_run():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = Average(model, decay=0.999)
    model.weight.data.fill_(0.0)
    for step in range(1000):
        average.update(step)
    assert average.state_dict()["weight"].item() < 1e-6  # 0.999**1000 would be 0.37


def test_swap_shows_the_average_and_undoes_itself_bit_for_bit():
    model = nn.Linear(3, 3)
    average = Average(model, decay=0.5)
    old = copy.deepcopy(model.state_dict())
    model.weight.data += 1
    live = copy.deepcopy(model.state_dict())
    average.swap()
    assert torch.equal(model.weight, old["weight"])
    average.swap()
    assert torch.equal(model.weight, live["weight"])
    assert torch.equal(average.state_dict()["weight"], old["weight"])


def test_muon_moves_the_matrices_of_the_blocks_and_its_state_comes_back():
    config = get_config(
        "toy",
        ["train_dalle.muon_lr=0.02", "train_dalle.clip_variance=0", "train_dalle.weight_decay=0.1"],
    )

    def train(model, optimizer, steps):
        for step in steps:
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    def start():
        model = DALLE(config.dalle)
        return model, make_optimizer(model, config.train_dalle)

    model, optimizer = train(*start(), range(2))
    by_muon = [g for g in optimizer.param_groups if "rate" in g]
    assert sum(len(g["params"]) for g in by_muon) == 4 * config.dalle.n_layers
    other, resumed = start()
    other.load_state_dict(model.state_dict())
    tensors, _ = pack(model, optimizer, Average(model, 0.9))
    moments = {k.removeprefix("optimizer/"): v for k, v in tensors.items() if k[:3] == "opt"}
    unpack_optimizer(resumed, other, copy.deepcopy(moments))
    train(model, optimizer, (2, 3))
    train(other, resumed, (2, 3))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_rate_may_stay_and_then_fall_straight():
    config = TrainConfig(steps=100, batch_size=1, lr=2.0, lr_end=1.0, warmup=1, fall=0.5)
    rates = [learning_rate(step, config) for step in (0, 1, 49, 50, 75, 100)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 2.0, 1.5, 1.0])
