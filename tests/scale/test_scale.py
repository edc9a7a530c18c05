"""The scale wing on one process: arithmetic, float16 scales, updates in the backward pass."""

import math
import time
from dataclasses import replace

import pytest
import torch
from helpers.own_images import good_pairs, write_tar
from torch import nn

from minidalle import data
from minidalle.cache import LayerCache
from minidalle.config import PRESETS, DALLEConfig, TrainConfig, get_config
from minidalle.dalle import DALLE
from minidalle.data.shards import ENTRY
from minidalle.data.shuffle import Shuffle
from minidalle.scale import arithmetic, card, footprint, launch, memory, powersgd, precision
from minidalle.scale.plan import plan, table
from minidalle.training.optim import AdamW, Average, make_optimizer, parameter_groups
from minidalle.transformer import layer_kinds

GIB = 2**30
TINY = DALLEConfig(
    text_vocab=512,
    text_len=32,
    image_vocab=256,
    grid=8,
    n_layers=2,
    n_heads=2,
    head_dim=16,
    kernel=3,
)


def batch(n: int = 4, c=TINY) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "text": torch.randint(0, c.text_vocab, (n, c.text_len - 1), generator=g),
        "tokens": torch.randint(0, c.image_vocab, (n, c.grid**2), generator=g),
    }


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_of_the_model(name):
    c = PRESETS[name].dalle
    with torch.device("meta"):
        model = DALLE(c)
    counts = arithmetic.parameters(c)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["blocks"] == sum(p.numel() for p in model.transformer.blocks.parameters())


def test_the_paper_has_twelve_billion_in_its_matrices():
    c = get_config("12b").dalle
    assert 12 * c.width**2 * c.n_layers == 12_092_178_432  # "12.0e9", table 1


def test_dense_operations_are_those_that_torch_counts():
    c = replace(get_config("12b").dalle, n_layers=1)
    flops = arithmetic.forward_flops(c)
    dense = 4 * c.width * arithmetic.states(c) ** 2  # torch counts every query with every key
    assert 3 * (flops["matrices"] + flops["heads"] + dense) == footprint.count_flops(c)


def test_attention_operations_follow_the_masks():
    c = get_config("12b").dalle
    found = {kind: arithmetic.pairs(c, kind) for kind in ("row", "column", "conv")}
    assert found["row"] == pytest.approx(256.5 * 1280, rel=0.001)
    assert found["column"] == pytest.approx(243.7 * 1280, rel=0.001)  # paper-facts D.4
    assert found["conv"] == pytest.approx(278.4 * 1280, rel=0.001)


@pytest.mark.parametrize("precision_name", ["bfloat16", "float32"])
def test_a_block_keeps_the_bytes_that_the_arithmetic_says(precision_name, monkeypatch):
    from minidalle import attention

    monkeypatch.setattr(attention, "dense", footprint._fused)
    c = replace(TINY, attention="dense")
    model = DALLE(c).transformer.blocks[0]
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    x = torch.zeros(3, arithmetic.states(c), c.width, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=precision_name == "bfloat16"),
    ):
        model(x)
    matrices = {p.numel() for p in model.parameters()}  # weights and their 16-bit copies
    kept = [t for t in kept.values() if t.numel() not in matrices]
    total = sum(t.untyped_storage().nbytes() for t in kept)
    assert total / x.numel() == pytest.approx(arithmetic.KEPT[precision_name], rel=0.05)


def test_sharding_divides_what_is_kept_and_checkpointing_what_is_computed():
    c = get_config("12b").dalle
    one, eight = (arithmetic.training_bytes(c, 1, n) for n in (1, 8))
    for part in ("weights", "moments", "averaged weights"):
        assert one[part] == 8 * eight[part]
    kept = [
        arithmetic.training_bytes(replace(c, checkpointing=on), 16, 8)["activations"]
        for on in (True, False)
    ]
    assert kept[1] > 5 * kept[0]


def test_the_paper_fits_one_large_card_only_with_updates_in_the_backward_pass():
    c, room = get_config("12b").dalle, 139 * GIB
    need = [
        sum(arithmetic.training_bytes(c, 16, scheme=scheme).values())
        for scheme in arithmetic.SCHEMES
    ]
    assert need[0] > room > need[1] > need[2]
    assert need[1] == pytest.approx((93.0 + 16 * 0.82) * GIB, rel=0.2)  # scale.md section 6


def test_the_windowed_cache_has_the_sizes_of_the_real_one():
    for c in (TINY, get_config("small").dalle, get_config("12b").dalle):
        for kind in set(layer_kinds(c.n_layers)):
            text = torch.zeros(1, 1, c.text_len, 1)  # slots do not depend on the width
            real = LayerCache(c, kind, text, text, samples=2)
            assert arithmetic.image_slots(c, kind) == real.slots


def test_sampling_at_twelve_billion_shares_the_caption():
    c = get_config("12b").dalle
    one, many = arithmetic.sampling_bytes(c, 1), arithmetic.sampling_bytes(c, 256)
    assert one["weights"] == many["weights"] == pytest.approx(22.9 * GIB, rel=0.001)
    assert one["caption's keys, values"] == many["caption's keys, values"]
    each = many["pictures' keys, values"] / 256
    assert each == pytest.approx(0.268 * GIB, rel=0.01)  # scale.md section 6
    assert arithmetic.full_cache_bytes(c, 1) == pytest.approx(1.21 * GIB, rel=0.01)


# ---------------------------------------------------------------- plan and card


def test_plan_of_the_paper_names_days_and_memory():
    p = plan(get_config("12b"), gpus=64, batch=1024, check=False)
    assert p.fits and p.parts == 1
    flops = 6 * 12_092_178_432 * 1280 * 1024  # the usual 6 N T, a lower bound
    assert flops < p.flops < 1.05 * flops
    assert p.seconds == pytest.approx(p.flops / (64 * 989e12 * 0.4))
    assert p.days == pytest.approx(p.seconds * 430_000 / 86400)
    text = table(p)
    for word in (
        "12,292,816,384",
        "PowerSGD rank 896",
        "85.9%",
        "430,000 updates, days",
        "512 in 2 batches",
    ):
        assert word in text


def test_plan_says_what_to_change_where_it_does_not_fit():
    p = plan(get_config("12b"), gpus=1, batch=16, check=False)
    assert not p.fits
    assert any("update in backward" in line for line in p.advice)
    assert "DOES NOT FIT" in table(p)
    small = plan(get_config("small"), gpus=1, batch=256, card="rtx3060", check=False)
    assert small.fits and small.parts > 1
    assert f"train_dalle.accumulate={small.parts}" in table(small)


def test_plan_refuses_numbers_that_do_not_divide():
    with pytest.raises(ValueError, match="batch=100"):
        plan(get_config("toy"), gpus=8, batch=100, check=False)
    with pytest.raises(ValueError, match="unknown card 'abacus'"):
        plan(get_config("toy"), card="abacus", check=False)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_tracker_agrees_with_the_arithmetic(checkpointing):
    config = get_config("12b", [f"dalle.checkpointing={checkpointing}"])
    p = plan(config, gpus=8, batch=128)
    ours, theirs = p.tracked["arithmetic"], p.tracked["tracked"]
    assert theirs < ours < 1.2 * theirs  # on the safe side


def test_an_eight_gigabyte_card_trains_small_and_only_samples_from_base():
    small, base, big = (get_config(name) for name in ("small", "base", "12b"))
    fits = {(f.preset, f.stage): f for f in card.card(8, [small, base, big], measure=False)}
    assert fits["small", "train dalle"].batch > 0
    assert fits["base", "sample"].batch > 0
    assert fits["12b", "train dalle"].batch == fits["12b", "sample"].batch == 0
    assert 70 < fits["12b", "train dalle"].least < 80  # the best of all schemes, for one pair
    with pytest.raises(ValueError, match="-1"):
        card.card(-1)


@pytest.mark.slow
def test_card_table_measures_every_stage():
    text = card.card_table(get_config("toy"), 8)
    for stage in ("train dvae", "train clip", "train dalle", "sample"):
        assert stage in text


def test_network_bytes_are_the_papers_saving():
    c, d = get_config("12b").dalle, 3968
    whole, thin = (arithmetic.network_bytes(c, 8, rank) for rank in (0, 896))
    matrices = 4 * 12 * d * d * 64 // 8
    assert (whole - thin) / matrices == pytest.approx(1 - 5 * 896 / (8 * d), rel=1e-6)
    assert powersgd.saving(896, d) == pytest.approx(0.8589, abs=1e-4)


def test_ranks_are_those_of_table_1():
    assert [powersgd.paper_rank(d) for d in (1920, 2688, 3968)] == [512, 640, 896]
    assert [powersgd.paper_rank(d) for d in (32, 128, 2048)] == [16, 32, 512]  # a quarter


# ---------------------------------------------------------------- the order of the data


def test_a_hundred_shards_give_any_number_of_processes_the_same_batches(tmp_path):
    pairs = list(good_pairs(300).items())
    for k in range(100):
        write_tar(tmp_path / f"{k:05d}.tar", dict(pairs[k * 3 : k * 3 + 3]))
    sizes = ("data.image_size=16", "dvae.image_size=16", "clip.image_size=16", "dalle.grid=4")
    config = get_config(
        "toy", ["data.name=folder", f"data.folder={tmp_path}", "data.n_test=12", *sizes]
    )
    dataset = data.load(config, "train")
    assert len(dataset.counts) == 100
    for step in (0, 17):  # within the first epoch, and across its end
        whole = next(data.batches(dataset, config, "dvae")(step))["images"]
        for world in (2, 4):
            parts = [
                next(data.batches(dataset, config, "dvae", rank=r, world=world)(step))["images"]
                for r in range(world)
            ]
            assert all(torch.equal(part, whole[r::world]) for r, part in enumerate(parts))


def test_the_index_of_250_million_pairs_is_small_and_jumping_is_quick():
    assert ENTRY.itemsize * 250e6 < 8 * GIB
    order, began = Shuffle([10_000] * 25_000, seed=0), time.process_time()
    shares = [order.batch(200_000, 1024, r, 8) for r in range(8)]
    assert time.process_time() - began < 5
    assert len({i for share in shares for i in share.tolist()}) == 1024


# ---------------------------------------------------------------- updates in the backward pass


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
    compiled, own = [], torch.compile

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda f, **o: own(f, **o, backend=count))
    memory._compiled_adamw.cache_clear()
    found = {}
    for compile in (False, True):
        config, model = config_of(compile=compile), DALLE(TINY)
        optimizer = memory.backward_adamw(model, config)
        train(model, optimizer, 3)
        few = len(compiled)
        found[compile] = train(model, optimizer, 4)
    assert found[True] == pytest.approx(found[False], rel=1e-5)
    assert 0 < few == len(compiled) <= 5  # vectors, matrices, square ones; none anew
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
    again.load_state_dict(optimizer.state_dict())
    states = next(iter(again.state.values()))
    assert states["exp_avg"].dtype == torch.bfloat16
    assert train(other, again, 2) == train(model, optimizer, 2)


def test_averaged_weights_in_the_cpus_memory_are_the_averaged_weights():
    models = [nn.Linear(3, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    kinds = (Average, memory.HostAverage)
    averages = [kind(model, 0.9, every=2) for kind, model in zip(kinds, models, strict=True)]
    for step in range(5):
        for model, average in zip(models, averages, strict=True):
            with torch.no_grad():
                model.weight += step
            average.update(step)
    for average in averages:
        average.swap()
    assert not torch.equal(models[0].weight, averages[0].values[0])
    for values in zip(averages[0].values, averages[1].values, strict=True):
        torch.testing.assert_close(*values)
    torch.testing.assert_close(models[0].weight, models[1].weight)


# ---------------------------------------------------------------- float16


def gradients(model, **scales) -> list[torch.Tensor]:
    installed = precision.ResblockScales(model, **scales) if scales else None
    model.loss(batch())[0].backward()
    if installed:
        assert installed.unscale()
    return [p.grad.clone() for p in model.parameters()]


def test_float16_gradients_are_the_float32_ones():
    names = [name for name, _ in DALLE(TINY).named_parameters()]
    wanted = gradients(DALLE(TINY))
    found = gradients(DALLE(TINY), replicas=1)
    for name, a, b in zip(names, wanted, found, strict=True):
        if name != "pads.weight":  # full captions: no gradient
            assert (a - b).norm() <= 5e-3 * a.norm(), name


def deep_model() -> DALLE:
    """A residual stream that grows 2**32-fold over 4 layers, so that gradients shrink as fast."""
    model = DALLE(replace(TINY, n_layers=4, text_len=8, grid=8))
    branches = precision.resblocks(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "transformer" not in name and "head" not in name:
                p *= 2.0**-20
        for i, branch in enumerate(branches):
            out = branch.out if hasattr(branch, "out") else branch.down
            out.weight *= 2.0 ** (-14 + 32 * i / (len(branches) - 1))
    for norm in [*(branch.norm for branch in branches), model.transformer.norm]:
        norm.eps = 1e-20
    return model


def weight_gradients(model: DALLE) -> list[torch.Tensor]:
    """Of each resblock, the gradient of the matrix onto the identity path."""
    branches = precision.resblocks(model)
    outs = [b.out if hasattr(b, "out") else b.down for b in branches]
    return [out.weight.grad.clone() for out in outs]


def test_one_global_scale_loses_gradients_that_one_per_resblock_keeps():
    reference = deep_model()
    reference.loss(few(reference))[0].backward()
    wanted, errors = weight_gradients(reference), {}
    for single in (True, False):
        model = deep_model()
        scales = precision.ResblockScales(model, single=single)
        calibrate(model, scales)
        model.zero_grad()
        model.loss(few(model))[0].backward()
        assert scales.unscale()
        pairs = zip(wanted, weight_gradients(model), strict=True)
        errors[single] = [((a - b).norm() / a.norm()).item() for a, b in pairs]
    assert min(errors[True]) > 0.8, errors  # nothing is left of any gradient
    assert max(errors[False]) < 0.15, errors  # float16 rounding, the first weights subnormal


def few(model: DALLE) -> dict[str, torch.Tensor]:
    return batch(4, model.config)


def calibrate(model: DALLE, scales: precision.ResblockScales) -> None:
    """The largest finite scales, a quarter of them: so that only the range is compared."""
    scales.scales = [torch.tensor(2.0**24)] * len(scales.branches)
    for _ in range(100):
        model.zero_grad()
        model.loss(few(model))[0].backward()
        bad = [
            any(not g.isfinite().all() for g in scales._own(branch)) for branch in scales.branches
        ]
        if not any(bad):
            break
        pairs = zip(scales.scales, bad, strict=True)
        scales.scales = [s / 4 if b or scales.single else s for s, b in pairs]
    scales.scales = [s / 4 for s in scales.scales]


def test_scales_grow_drop_cool_down_and_stay_in_their_range():
    scales = precision.ResblockScales(DALLE(TINY), replicas=4)
    first = 4 * 2.0**13
    assert [s.item() for s in scales.scales] == [first] * 4  # two blocks, two resblocks each
    scales._adapt([True, False, False, False])
    assert scales.scales[0].item() == pytest.approx(first / 2**0.5)
    assert scales.scales[1].item() == pytest.approx(first * 2**0.001)
    for _ in range(124):
        scales._adapt([True, False, False, False])
    assert scales.scales[0].item() == pytest.approx(first / 2**0.5)  # not twice within 125
    scales._adapt([True, False, False, False])
    assert scales.scales[0].item() == pytest.approx(first / 2)
    scales.scales = [torch.tensor(4 * 2.0**e) for e in (7, 24, 24, 24)]
    for _ in range(126):
        scales._adapt([True, False, False, False])
    assert [s.item() for s in scales.scales] == [4 * 2.0**7] + [4 * 2.0**24] * 3


def test_an_overflow_is_noticed_and_does_not_reach_earlier_blocks():
    model = DALLE(TINY)
    scales = precision.ResblockScales(model)
    scales.scales[-1] = torch.tensor(2.0**40)  # the last resblock overflows
    model.loss(batch())[0].backward()
    assert not scales.unscale()
    for name, p in model.named_parameters():
        if "blocks.1.mlp" not in name:  # embeddings, too
            assert p.grad.isfinite().all(), name
    last = model.transformer.blocks[-1].mlp
    assert not last.down.weight.grad.isfinite().all()


def test_a_flat_slice_is_divided_where_it_carries_a_scale():
    model = DALLE(TINY)
    scales = precision.ResblockScales(model)
    scales.scales[2:] = [torch.tensor(2.0), torch.tensor(4.0)]  # of block 1
    names = [(name, p.numel()) for name, p in model.transformer.blocks[1].named_parameters()]
    flat = torch.ones(sum(n for _, n in names))
    scales.unscale_slice(1, flat, names)
    wanted = {"attention": 1 / 2, "mlp": 1 / 4}
    for (name, _), part in zip(names, flat.split([n for _, n in names]), strict=True):
        assert (part == (1 if ".norm." in name else wanted[name.split(".")[0]])).all(), name


def test_float16_and_updates_in_the_backward_pass_exclude_each_other():
    with pytest.raises(ValueError, match="nothing is left to undo it: use bfloat16"):
        launch._check_options("dalle", 0, update_in_backward=True, float16=True)
    launch._check_options("dalle", -1, update_in_backward=False, float16=True)
    with pytest.raises(ValueError, match=r"train_dalle\.compile=false"):
        launch._check_options("dalle", 0, False, float16=True, compile=True)


def test_scales_are_saved_and_restored():
    models = [DALLE(TINY) for _ in range(2)]
    one, two = (precision.ResblockScales(model) for model in models)
    one._adapt([True, False, False, True])
    two.load_state_dict(one.state_dict())
    for scales in (one, two):
        scales._adapt([True, True, False, False])
    assert [s.item() for s in one.scales] == [s.item() for s in two.scales]


def test_float16_works_with_checkpointed_blocks_and_when_sampling():
    from minidalle.generate import sample

    c = replace(TINY, checkpointing=True)
    found = gradients(DALLE(c), replicas=1)
    wanted = gradients(DALLE(c))
    total = [torch.cat([g.flatten() for g in gs]) for gs in (wanted, found)]
    assert (total[0] - total[1]).norm() < 5e-3 * total[0].norm()
    model = DALLE(TINY)
    precision.ResblockScales(model)
    assert sample(model, [1, 2, 3], n=1).shape == (1, 8, 8)
    with torch.no_grad():
        assert math.isfinite(model.loss(batch(1))[0])
