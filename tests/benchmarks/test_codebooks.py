"""The table of codebooks: equal work for all kinds, rows that are kept, numbers that are stated."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

from minidalle.evaluation import metrics
from minidalle.models import build
from minidalle.scale import arithmetic

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "codebooks.py"
SPEC = importlib.util.spec_from_file_location("codebooks", PATH)
codebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(codebooks)
each_kind = pytest.mark.parametrize("kind", codebooks.KINDS)


def test_the_stored_rows_are_those_of_the_script():
    rows = codebooks.read_rows()
    keys = [(r["data"], r["kind"], r["seed"]) for r in rows]
    assert rows and len(set(keys)) == len(keys)
    for row in rows:
        config = codebooks.setting(row["data"], row["kind"], row["seed"])
        model = build(config, "dvae")
        assert row["steps"] == config.train_dvae.steps == codebooks.STEPS[row["data"]][0]
        assert row.get("prior_steps", 0) in (0, config.train_dalle.steps)
        kept = [p for name, p in model.named_parameters() if "advers" not in name]
        assert row["weights"] == sum(p.numel() for p in kept)
        assert row["bits"] == config.dvae.grid**2 * math.log2(config.dvae.vocab_size)


@each_kind
def test_every_prior_of_a_data_set_costs_as_many_operations(kind):
    for name in ("toy", "mnist"):
        plain, own = (codebooks.setting(name, k, 0) for k in ("dVAE", kind))
        work, want = (
            c.train_dalle.steps * arithmetic.training_flops(c.dalle) for c in (own, plain)
        )
        assert work == pytest.approx(want, rel=0.01)
        assert plain.train_dalle.steps == codebooks.STEPS[name][1]
        assert own.data.n_train == plain.data.n_train


@each_kind
def test_every_kind_is_set_for_photographs_too(kind):
    config = codebooks.setting("cifar", kind, 0)
    assert (config.data.name, config.dvae.vocab_size) == ("cifar", 512)
    assert config.train_dvae.steps == codebooks.STEPS["cifar"][0]
    assert (config.codebook == "palette") != hasattr(config.dvae, "n_hid")


@each_kind
def test_networks_have_about_as_many_weights_and_all_see_the_same_updates(kind):
    plain, own = (codebooks.setting("toy", k, 0) for k in ("dVAE", kind))
    assert own.train_dvae.steps == plain.train_dvae.steps
    assert own.train_dvae.batch_size == plain.train_dvae.batch_size
    sizes = [
        sum(p.numel() for n, p in build(c, "dvae").named_parameters() if "advers" not in n)
        for c in (plain, own)
    ]
    assert own.codebook == "palette" or 0.5 < sizes[1] / sizes[0] < 1.5


def test_a_row_replaces_the_older_one_of_its_kind_and_seed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(codebooks, "RESULTS", tmp_path / "rows.json")
    row = {"data": "mnist", "kind": "VQGAN", "seed": 1, "psnr": 20.00004}
    for changes in ({}, {"kind": "dVAE"}, {"seed": 0}, {"psnr": 21.0}):
        codebooks.keep({**row, **changes})
    found = [(r["kind"], r["seed"], r["psnr"]) for r in json.loads(codebooks.RESULTS.read_text())]
    assert found == [("dVAE", 1, 20.0), ("VQGAN", 0, 20.0), ("VQGAN", 1, 21.0)]


def test_a_cell_says_the_mean_and_how_sure_it_is():
    assert codebooks.cell("psnr", [{"psnr": 20.0}, {"psnr": 21.0}]) == "20.50 ± 0.50"
    assert codebooks.cell("psnr", [{}]) == "–"
    rows = [{"samples": [[1, 2], [3, 4]]}, {"samples": [[2, 2], [0, 4]]}]
    marks, pairs = [1, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0], "aabbbbaabbbb"
    want = metrics.estimate(marks, list(pairs))
    text = f"{want['share']:.1%} [{want['low']:.0%}, {want['high']:.0%}]"
    assert codebooks.cell("samples", rows) == text
    assert want["share"] == 0.5


def test_edges_are_the_differences_of_neighbours():
    images = torch.zeros(1, 3, 4, 4)
    images[..., 2:] = 1  # one step in each row, none down
    assert codebooks.edges(images) == pytest.approx((1 / 3 + 0) / 2)


def test_down_sampled_colours_are_drawn_smoothly():
    model = build(codebooks.setting("toy", "down-sampled", 0), "dvae")
    tokens = torch.zeros(1, 8, 8, dtype=torch.int64)
    tokens[..., 4:] = 1
    hard, soft = (codebooks.decode(k, model, tokens) for k in ("palette 16 x 16", "down-sampled"))
    assert hard.shape == soft.shape == (1, 3, 32, 32)
    assert len(hard[0, 0, 0].unique()) == 2 < len(soft[0, 0, 0].unique())
    assert torch.allclose(hard[..., 0], soft[..., 0], atol=0.02)
