"""The variants of the ablation differ from the preset in what they say, and in nothing else."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from minidalle.config import get_config, replace
from minidalle.dvae import DiscreteVAE

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "dvae_ablation.py"


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("dvae_ablation", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(**changes):
    config = get_config("toy")
    dvae = replace(
        config.dvae, n_hid=8, vocab_size=16, n_init=8, tau_steps=100, beta_steps=50, **changes
    )
    return replace(config, dvae=dvae)


def test_wide_codes_begin_as_the_same_function(ablation):
    images, tokens = torch.rand(8, 3, 32, 32), torch.randint(16, (2, 8, 8))
    with torch.no_grad():
        narrow = ablation.build(small(spread_codes=True), DiscreteVAE, images)
        wide = ablation.build(small(spread_codes=True), ablation.WideCodes, images)
        assert wide.encoder.blocks.output.conv.w.shape[-2:] == (3, 3)
        assert wide.decoder.blocks.input.w.shape[-2:] == (3, 3)
        torch.testing.assert_close(wide.logits(images), narrow.logits(images))
        torch.testing.assert_close(wide.decode(tokens), narrow.decode(tokens))
        relaxed = narrow.logits(images).softmax(1)
        torch.testing.assert_close(wide.decoder(relaxed), narrow.decoder(relaxed))


def test_a_wide_code_is_seen_by_its_neighbours_once_trained(ablation):
    with torch.no_grad():
        model = ablation.build(
            small(spread_codes=False), ablation.WideCodes, torch.rand(8, 3, 32, 32)
        )
        model.decoder.blocks.input.w.normal_()
        tokens = torch.zeros(1, 8, 8, dtype=torch.int64)
        other = tokens.clone()
        other[0, 4, 4] = 1
        moved = (model.code_vectors(tokens) != model.code_vectors(other)).any(1)[0]
    assert moved.nonzero().amin(0).tolist() == [3, 3] and moved.sum() == 9


def test_linear_tau_is_the_chord_of_the_half_cosine(ablation):
    c = small().dvae
    line, cosine = ablation.LinearTau(c), DiscreteVAE(c)
    for step in (0, 50, 100, 1000):  # both ends, the middle, and after
        assert line.schedule(step) == pytest.approx(cosine.schedule(step))
    assert line.schedule(25)[0] == pytest.approx(1 - 0.25 * (1 - c.tau))
    assert line.schedule(25)[0] < cosine.schedule(25)[0]


def test_average_pool_replaces_every_pool_and_no_weight(ablation):
    torch.manual_seed(0)
    plain = DiscreteVAE(small().dvae)
    torch.manual_seed(0)
    model = ablation.AveragePool(small().dvae)
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(nn.AvgPool2d) == 2 and nn.MaxPool2d not in kinds
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_shorter_run_keeps_the_shares_of_its_schedules(ablation):
    whole = get_config("toy")
    part = ablation.shortened(whole, 100)
    assert part.train_dvae.steps == 100
    for name in ("tau_steps", "beta_steps"):
        want = getattr(whole.dvae, name) / whole.train_dvae.steps
        assert getattr(part.dvae, name) / 100 == pytest.approx(want, abs=0.005)
    assert ablation.squeeze(1, old=1000, new=10) == 1


def test_every_variant_changes_the_preset(ablation):
    config = small()
    for name, variant in ablation.VARIANTS.items():
        same = replace(config.dvae, **variant.change(config)) == config.dvae
        assert (same and variant.model is DiscreteVAE) == (name == "preset"), name


def test_a_row_gives_mean_and_half_range(ablation):
    results = [dict.fromkeys(ablation.COLUMNS, value) for value in (1.0, 3.0)]
    assert "2.00±1.00" in ablation.row("two seeds", results)
    assert "nan" in ablation.row("diverged", [dict.fromkeys(ablation.COLUMNS, math.nan)])
