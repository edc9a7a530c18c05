"""What benchmarks/results/sizes.json says of each size is true of its configuration."""

import importlib.util
import json
from itertools import product
from pathlib import Path

from minidalle.scale import arithmetic

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "sizes.py"
SPEC = importlib.util.spec_from_file_location("sizes", PATH)
sizes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sizes)


def test_the_stored_rows_are_those_of_the_script():
    rows = json.loads(sizes.RESULTS.read_text(encoding="utf-8"))
    runs = [(row["heads"], row["seed"]) for row in rows]
    assert [heads for heads, seed in runs if seed == 0] == list(sizes.HEADS)
    assert set(runs) <= set(product(sizes.HEADS, sizes.SEEDS)) and len(set(runs)) == len(runs)
    for row in rows:
        c = sizes.setting(row["heads"], row["seed"]).dalle
        assert row["width"] == c.width
        assert row["parameters"] == sum(arithmetic.parameters(c).values())
        assert row["operations"] == arithmetic.training_flops(c) * sizes.BATCH
        tested = range(sizes.EVERY, sizes.UPDATES + 1, sizes.EVERY)
        assert [step for step, *_ in row["history"]] == list(tested)


def test_a_part_of_a_run_has_the_rates_of_the_whole():
    whole, part = sizes.setting(2), sizes.setting(2, updates=sizes.EVERY)
    assert part.train_dalle.steps == sizes.EVERY
    assert part.train_dalle.lr_steps == whole.train_dalle.lr_steps == sizes.UPDATES
