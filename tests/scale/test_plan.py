"""The planner: what fits, how long, what to change."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from minidalle.cli import main
from minidalle.config import PRESETS, get_config
from minidalle.scale import arithmetic
from minidalle.scale.plan import advice, plan, sampled_at_once, table


@pytest.mark.parametrize("preset", [name for name, c in PRESETS.items() if c.prior == "dalle"])
@pytest.mark.parametrize("options", [[], ["--gpus", "4"]])
def test_plan_answers_for_every_preset(preset, options, capsys):
    assert main(["plan", "--preset", preset, *options]) == 0
    text = capsys.readouterr().out
    for word in ("parameters", "memory per GPU, GiB", "one update, s", "sampling on one GPU"):
        assert word in text


def test_plan_refuses_a_prior_that_it_cannot_count(capsys):
    assert main(["plan", "--preset", "mini"]) == 2
    assert "got prior=mini" in capsys.readouterr().err


def test_plan_of_the_paper_names_days_and_memory():
    p = plan(get_config("12b"), gpus=64, batch=1024)
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
    p = plan(get_config("12b"), gpus=1, batch=16)
    assert not p.fits
    assert any(
        line.startswith("--update-in-backward: ") and "16 of 16" in line for line in advice(p)
    )
    assert not any("accumulate" in line for line in advice(p))  # these exclude each other
    assert "DOES NOT FIT" in table(p)
    small = plan(get_config("small"), gpus=1, batch=256, gpu="rtx3060")
    assert small.fits and small.parts > 1
    assert f"train_dalle.accumulate={small.parts}" in table(small)


def test_a_plan_prices_a_run():
    p = plan(get_config("12b"), gpus=64, batch=1024)
    hours = 64 * p.days * 24
    text = table(p, price=2.5, grid=400)
    for n in (hours, hours * 2.5, hours * 0.7 * 0.4):  # 700 W, 400 g a kWh: GPU hours, $, kg
        assert f"{n:,.0f}" in text
    assert "CO2" not in table(p, price=2.5) and "dollars" not in table(p)
    for bad in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="numbers from 0"):
            table(p, grid=bad)


def test_plan_refuses_numbers_that_do_not_divide():
    with pytest.raises(ValueError, match="batch=100"):
        plan(get_config("toy"), gpus=8, batch=100)
    with pytest.raises(ValueError, match="unknown GPU 'abacus'"):
        plan(get_config("toy"), gpu="abacus")


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", "01")
def test_fake_tensors_in_the_real_model_agree_with_the_arithmetic(checkpointing):
    script = Path(__file__).parents[2] / "benchmarks" / "planner.py"
    command = [sys.executable, str(script), "--worker", "12b", checkpointing]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tracked"] < found["bytes"] < 1.2 * found["tracked"]  # on the safe side
    assert found["operations"] == found["counted"]


def test_a_small_gpu_trains_small_and_only_samples_from_base():
    small, base, big = (
        plan(get_config(name), gpus=1, batch=1, gpu="rtx3060") for name in ("small", "base", "12b")
    )
    assert small.fits and not base.fits and not big.fits
    assert sampled_at_once(small) > sampled_at_once(base) > 0 == sampled_at_once(big)
    c, memory = base.config.dalle, 11.6 * 0.96 * 2**30
    one_more = (sampled_at_once(base), sampled_at_once(base) + 1)
    fits, does_not = (sum(arithmetic.sampling_bytes(c, n).values()) for n in one_more)
    assert fits <= memory < does_not
    assert "sampling needs 23" in table(big) and "DOES NOT FIT" in table(big)
