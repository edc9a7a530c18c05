"""float16 with a gradient scale per resblock."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.tiny_prior import TINY, batch

from minidalle.config import TrainConfig
from minidalle.dalle import DALLE
from minidalle.generate import sample
from minidalle.scale import launch, precision


def gradients(model, **scales) -> list[torch.Tensor]:
    installed = precision.ResblockScales(model, **scales) if scales else None
    model.loss(batch())[0].backward()
    if installed:
        assert installed.unscale()
    return [p.grad.clone() for p in model.parameters()]


def test_float16_gradients_are_the_float32_ones():
    names = [name for name, _ in DALLE(TINY).named_parameters()]
    wanted = gradients(DALLE(TINY))
    found = gradients(DALLE(TINY), start=precision.START)
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
        scales = precision.ResblockScales(model)
        calibrate(model, scales, single)
        model.zero_grad()
        model.loss(few(model))[0].backward()
        assert scales.unscale()
        pairs = zip(wanted, weight_gradients(model), strict=True)
        errors[single] = [((a - b).norm() / a.norm()).item() for a, b in pairs]
    assert min(errors[True]) > 0.8, errors  # nothing is left of any gradient
    assert max(errors[False]) < 0.15, errors  # float16 rounding, the first weights subnormal


def few(model: DALLE) -> dict[str, torch.Tensor]:
    return batch(4, model.config)


def calibrate(model: DALLE, scales: precision.ResblockScales, single: bool) -> None:
    """The largest finite scales (or one for all), a quarter of them: only the range is compared."""
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
        scales.scales = [s / 4 if b or single else s for s, b in pairs]
    scales.scales = [s / 4 for s in scales.scales]


def test_scales_grow_drop_cool_down_and_stay_in_their_range():
    scales = precision.ResblockScales(DALLE(TINY))
    first = 2.0**13
    assert [s.item() for s in scales.scales] == [first] * 4  # two blocks, two resblocks each
    scales._adapt([True, False, False, False])
    assert scales.scales[0].item() == pytest.approx(first / 2**0.5)
    assert scales.scales[1].item() == pytest.approx(first * 2**0.001)
    for _ in range(124):
        scales._adapt([True, False, False, False])
    assert scales.scales[0].item() == pytest.approx(first / 2**0.5)  # not twice within 125
    scales._adapt([True, False, False, False])
    assert scales.scales[0].item() == pytest.approx(first / 2)
    scales.scales = [torch.tensor(2.0**e) for e in (7, 24, 24, 24)]
    for _ in range(126):
        scales._adapt([True, False, False, False])
    assert [s.item() for s in scales.scales] == [2.0**7] + [2.0**24] * 3


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
    scales.unscale_slice(1, names, flat)
    wanted = {"attention": 1 / 2, "mlp": 1 / 4}
    for (name, _), part in zip(names, flat.split([n for _, n in names]), strict=True):
        assert (part == (1 if ".norm." in name else wanted[name.split(".")[0]])).all(), name


@pytest.mark.parametrize(
    "said, training, message",
    [
        ({"update_in_backward": True, "float16": True}, {}, "nothing is left to undo it"),
        ({"float16": True}, {"compile": True}, r"train_dalle\.compile=false"),
        ({"fixed_q": True}, {}, "set compress"),
        ({"update_in_backward": True}, {"muon_lr": 0.01}, "muon_lr=0"),
        ({"bfloat16_weights": True}, {}, "set that, too"),
    ],
)
def test_options_that_need_or_exclude_another_are_refused(said, training, message):
    with pytest.raises(ValueError, match=message):
        launch.Options(**said).check("dalle", TrainConfig(3, 4, 1e-2, **training))
    launch.Options(compress=-1, float16=True).check("dalle", TrainConfig(3, 4, 1e-2))


def test_scales_are_saved_and_restored():
    models = [DALLE(TINY) for _ in range(2)]
    one, two = (precision.ResblockScales(model) for model in models)
    one._adapt([True, False, False, True])
    two.load_state_dict(one.state_dict())
    for scales in (one, two):
        scales._adapt([True, True, False, False])
    assert [s.item() for s in one.scales] == [s.item() for s in two.scales]


def test_float16_works_with_checkpointed_blocks_and_when_sampling():
    c = replace(TINY, checkpointing=True)
    found = gradients(DALLE(c), start=precision.START)
    wanted = gradients(DALLE(c))
    total = [torch.cat([g.flatten() for g in gs]) for gs in (wanted, found)]
    assert (total[0] - total[1]).norm() < 5e-3 * total[0].norm()
    model = DALLE(TINY)
    precision.ResblockScales(model)
    assert sample(model, [1, 2, 3], n=1).shape == (1, 8, 8)
    with torch.no_grad():
        assert math.isfinite(model.loss(batch(1))[0])
