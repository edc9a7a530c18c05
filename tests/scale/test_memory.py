"""Updates inside the backward pass, 16-bit weights and moments, averages on the CPU."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.tiny_prior import TINY, Counted, batch
from torch import nn

from minidalle.config import TrainConfig
from minidalle.dalle import DALLE
from minidalle.scale import memory
from minidalle.training.checkpoints import pack, unpack_optimizer
from minidalle.training.optim import AdamW, Average, make_optimizer, parameter_groups


def config_of(**changes) -> TrainConfig:
    plain = TrainConfig(
        steps=10, batch_size=4, lr=1e-3, betas=(0.9, 0.96), weight_decay=0.05, clip_variance=5.0
    )
    return replace(plain, **changes)


def train(model, optimizer, steps: int = 8) -> list[float]:
    losses = []
    for _ in range(steps):
        loss, _ = model.loss(batch())
        loss.backward()
        if isinstance(optimizer, memory.BackwardAdamW):
            optimizer.end_update(list(model.parameters()), 0.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def backward_optimizer(model, config, **options) -> memory.BackwardAdamW:
    groups = parameter_groups(model, config.weight_decay)
    return memory.BackwardAdamW(groups, config, **options)


def test_updates_in_the_backward_pass_are_those_of_adamw_and_leave_no_gradient():
    config, models = config_of(), [DALLE(TINY) for _ in range(2)]
    wanted = train(models[0], make_optimizer(models[0], config))
    found = train(models[1], backward_optimizer(models[1], config, moments=torch.float32))
    assert found == pytest.approx(wanted, rel=1e-5)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    loss, _ = models[1].loss(batch())
    loss.backward()
    assert all(p.grad is None for p in models[1].parameters())


def test_sixteen_bit_moments_and_weights_train_as_well():
    config, losses = config_of(), {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = DALLE(TINY).to(dtype)
        losses[name] = train(model, memory.backward_adamw(model, config), 12)
    reference = DALLE(TINY)
    wanted = train(reference, make_optimizer(reference, config), 12)
    assert losses["float32"][-1] == pytest.approx(wanted[-1], rel=2e-3)
    assert losses["bfloat16"][-1] == pytest.approx(wanted[-1], rel=1e-2)


def test_the_compiled_update_is_the_update_and_is_compiled_for_few_shapes_only(monkeypatch):
    compiled, own = Counted(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda f, **o: own(f, **o, backend=compiled))
    memory._compiled_adamw.cache_clear()
    found = {}
    for compile in (False, True):
        config, model = config_of(compile=compile), DALLE(TINY)
        optimizer = memory.backward_adamw(model, config)
        train(model, optimizer, 3)
        few = len(compiled.graphs)
        found[compile] = train(model, optimizer, 4)
    assert found[True] == pytest.approx(found[False], rel=1e-5)
    assert 0 < few == len(compiled.graphs) <= 5  # vectors, matrices, square ones; none anew
    memory._compiled_adamw.cache_clear()


def test_stochastic_rounding_is_right_on_average_and_keeps_what_fits():
    x = torch.tensor([1.0, 1.001, -3.0003, 1e-8, math.inf, -math.inf])
    g = torch.Generator().manual_seed(0)
    draws = torch.randint(1 << 16, (20_000, len(x)), generator=g, dtype=torch.int32)
    rounded = memory.stochastic_round(x.expand(20_000, -1).contiguous(), draws).double()
    torch.testing.assert_close(rounded.mean(0)[:4], x[:4].double(), rtol=1e-4, atol=0)
    assert torch.equal(rounded[0, 4:], x[4:].double())
    exact = torch.tensor([1.5, -2.0])
    assert torch.equal(memory.stochastic_round(exact, draws[0, :2]).float(), exact)
    nan = torch.tensor([math.nan])
    assert memory.stochastic_round(nan, draws[0, :1]).isnan().all()


def test_plain_rounding_loses_small_updates_that_stochastic_rounding_keeps():
    weight, step = torch.ones(4096).bfloat16(), 1e-4  # a 40th of bfloat16's step at 1
    plain, lucky = weight.clone(), weight.clone()
    for n in range(200):
        plain = (plain.float() - step).bfloat16()
        g = torch.Generator().manual_seed(n)
        draws = torch.randint(1 << 16, lucky.shape, generator=g, dtype=torch.int32)
        lucky = memory.stochastic_round(lucky.float() - step, draws)
    assert torch.equal(plain, weight)
    assert lucky.float().mean().item() == pytest.approx(1 - 200 * step, abs=1e-3)


def test_a_gradient_that_is_not_finite_moves_nothing():
    layer = nn.Linear(3, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = backward_optimizer(layer, config_of())
    layer(torch.tensor([[math.inf, 1.0, 1.0]])).sum().backward()
    assert torch.equal(layer.weight, before[0])  # its gradient is infinite
    assert not torch.equal(layer.bias, before[1])
    norm = optimizer.end_update(list(layer.parameters()), 1.0)
    assert not norm.isfinite()  # fit counts the update as bad
    assert optimizer.last_norm is None


def test_clipping_uses_the_norm_of_the_update_before():
    class Plain(AdamW):
        """AdamW, with the gradients scaled by hand as BackwardAdamW should."""

    models = [nn.Linear(4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    config = config_of(clip_norm=0.5, lr=0.1)
    plain = Plain(parameter_groups(models[0], 0.05), 0.1, config.betas, config.eps)
    ours = backward_optimizer(models[1], replace(config, clip_variance=0), moments=torch.float32)
    last = None
    for n in range(5):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(n)) * 3
        for model in models:
            model(x).square().mean().backward()
        norm = nn.utils.get_total_norm([p.grad for p in models[0].parameters()])
        assert ours.end_update(list(models[1].parameters()), 0.5) == pytest.approx(norm.item())
        for p in models[0].parameters():
            p.grad *= 1.0 if last is None else min(1.0, 0.5 / last)
        last = norm.item()
        plain.step()
        plain.zero_grad()
    torch.testing.assert_close(models[0].weight, models[1].weight)


def test_accumulation_and_updates_in_the_backward_pass_exclude_each_other():
    with pytest.raises(ValueError, match="accumulate=2"):
        backward_optimizer(nn.Linear(2, 2), config_of(accumulate=2))


def test_a_saved_optimiser_goes_on_with_sixteen_bit_moments():
    config, model = config_of(), DALLE(TINY)
    optimizer = memory.backward_adamw(model, config)
    train(model, optimizer, 2)
    other = DALLE(TINY)
    other.load_state_dict(model.state_dict())
    again = memory.backward_adamw(other, config)
    tensors, scalars = pack(model, optimizer, Average(model, 0.9))
    moments = {k.removeprefix("optimizer/"): v for k, v in tensors.items() if k[:3] == "opt"}
    unpack_optimizer(again, other, moments | scalars)
    states = next(iter(again.state.values()))
    assert states["exp_avg"].dtype == torch.bfloat16
    assert train(other, again, 2) == train(model, optimizer, 2)


def test_averaged_weights_in_the_cpus_memory_are_the_averaged_weights():
    models = [nn.Linear(3, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    averages = [Average(models[0], 0.9, 2), Average(models[1], 0.9, 2, host=True)]
    for step in range(5):
        for model, average in zip(models, averages, strict=True):
            with torch.no_grad():
                model.weight += step
            average.update(step)
    live = models[0].weight.clone()
    for average in averages:
        average.swap()
    assert not torch.equal(models[0].weight, live)
    torch.testing.assert_close(models[0].weight, models[1].weight)
    for average in averages:
        average.swap()
    assert torch.equal(models[0].weight, models[1].weight)  # as before


def test_the_average_of_sixteen_bit_weights_moves_by_less_than_they_can():
    layer = nn.Linear(3, 3).bfloat16()
    average = Average(layer, 0.999)
    before = average.values[0].clone()
    with torch.no_grad():
        layer.weight.mul_(1.01)
    for step in range(10_000, 10_010):  # a thousandth of a hundredth each
        average.update(step)
    assert 0 < ((average.values[0] - before) / before).abs().max() < 2e-4
    weight = layer.weight.clone()
    average.swap()
    assert layer.weight.dtype == torch.bfloat16
    average.swap()
    assert torch.equal(layer.weight, weight)
