"""What a prior costs: formulas against the real model, torch's counters and the paper's tables."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_prior import TINY, batch
from torch.utils.flop_counter import FlopCounterMode

from minidalle import attention
from minidalle.config import PRESETS, get_config
from minidalle.dalle import DALLE
from minidalle.scale import arithmetic, powersgd

GIB = 2**30


@pytest.mark.parametrize("name", [name for name, c in PRESETS.items() if c.prior == "dalle"])
def test_parameters_are_those_of_the_model(name):
    c = PRESETS[name].dalle
    with torch.device("meta"):
        model = DALLE(c)
    counts = arithmetic.parameters(c)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["blocks"] == sum(p.numel() for p in model.transformer.blocks.parameters())


def test_dense_operations_are_those_that_torch_counts():
    c = replace(get_config("12b").dalle, n_layers=1)
    flops = arithmetic.forward_flops(c)
    dense = 4 * c.width * arithmetic.states(c) ** 2  # torch counts every query with every key
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        DALLE(replace(c, attention="dense", checkpointing=False)).loss(batch(1, c))[0].backward()
    assert 3 * (flops["matrices"] + flops["heads"] + dense) == counter.get_total_flops()


def test_attention_operations_follow_the_masks():
    c = get_config("12b").dalle
    found = {kind: arithmetic.pairs(c, kind) for kind in ("row", "column", "conv")}
    assert found["row"] == pytest.approx(256.5 * 1280, rel=0.001)
    assert found["column"] == pytest.approx(243.7 * 1280, rel=0.001)  # paper-facts D.4
    assert found["conv"] == pytest.approx(278.4 * 1280, rel=0.001)


@pytest.mark.parametrize("precision_name", ["bfloat16", "float32"])
def test_a_block_keeps_the_bytes_that_the_arithmetic_says(precision_name, monkeypatch):
    def fused(q, k, v, mask):  # as on a GPU: no scores are kept
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    monkeypatch.setattr(attention, "dense", fused)
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


def test_the_paper_fits_one_large_gpu_only_with_updates_in_the_backward_pass():
    c, memory = get_config("12b").dalle, 139 * GIB
    need = [
        sum(arithmetic.training_bytes(c, 16, scheme=scheme).values())
        for scheme in arithmetic.SCHEMES
    ]
    assert need[0] > memory > need[1] > need[2]
    assert need[1] == pytest.approx((93.0 + 16 * 0.82) * GIB, rel=0.2)  # scale.md section 6


def test_sampling_at_twelve_billion_shares_the_caption():
    c = get_config("12b").dalle
    one, many = arithmetic.sampling_bytes(c, 1), arithmetic.sampling_bytes(c, 256)
    assert one["weights"] == many["weights"] == pytest.approx(22.9 * GIB, rel=0.001)
    assert one["caption's keys, values"] == many["caption's keys, values"]
    each = many["images' keys, values"] / 256
    assert each == pytest.approx(0.268 * GIB, rel=0.01)  # scale.md section 6
    assert arithmetic.full_cache_bytes(c, 1) == pytest.approx(1.21 * GIB, rel=0.01)


def test_network_bytes_are_the_papers_saving():
    c, d = get_config("12b").dalle, 3968
    whole, thin = (arithmetic.network_bytes(c, 8, rank) for rank in (0, 896))
    matrices = 4 * 12 * d * d * 64 // 8
    assert (whole - thin) / matrices == pytest.approx(1 - 5 * 896 / (8 * d), rel=1e-6)
    assert powersgd.saving(896, d) == pytest.approx(0.8589, abs=1e-4)


def test_ranks_are_those_of_table_1():
    assert [powersgd.paper_rank(d) for d in (1920, 2688, 3968)] == [512, 640, 896]
    assert [powersgd.paper_rank(d) for d in (32, 128, 2048)] == [16, 32, 512]  # a quarter
