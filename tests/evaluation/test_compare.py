"""Is a curve normal? The words, against curves whose answer is plain."""

import json

import pytest

from minidalle.evaluation import compare
from minidalle.evaluation.compare import at, compare_run, smooth, verdict
from minidalle.training.log import read_log

NORMAL = [(100 * i, 4.0 / i) for i in range(1, 41)]  # from 4 down to 0.1


@pytest.mark.parametrize(
    "curve, words",
    [
        (NORMAL, ": normal."),
        ([(x, y + 0.3) for x, y in NORMAL], ": normal."),  # 0.3 of the 3.9 that were gained
        ([(x, y + 0.8) for x, y in NORMAL], ": a little behind"),
        ([(x, 4.0) for x, _ in NORMAL], ": not normal, 100% of the reference's gain behind; look"),
        ([(x, y - 0.5) for x, y in NORMAL], ": better than the reference."),
        ([*NORMAL[:30], (3100, None)], "not a finite number in places"),
        (NORMAL[:10], "0.400 after 1000 updates, the reference 0.400: normal."),
    ],
)
def test_a_curve_is_judged_where_both_have_come(curve, words):
    assert words in verdict(curve, NORMAL, "look here")


def test_values_between_two_lines_of_a_log_lie_on_a_straight_line():
    assert at([(10, 1.0), (20, 3.0)], 15) == 2.0
    assert at([(10, 1.0), (20, 3.0)], 99) == 3.0 and at([(10, 1.0)], 2) == 1.0


def test_smoothing_averages_five_and_leaves_short_curves_alone():
    smoothed = smooth([(i, float(i)) for i in range(40)])
    assert smoothed[39] == (39, 37.0) and smoothed[0] == (0, 0.0) and len(smoothed) == 40
    assert smooth(NORMAL[:6]) == NORMAL[:6]


def log(folder, values):
    folder.mkdir(parents=True)
    rows = [{"step": 50 * i, "loss": v, "lr": 1.0} for i, v in enumerate(values, start=1)]
    rows.append({"step": 50 * len(values), "test_error": 0.5})  # as a VQ-VAE says it
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_drawn_over_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "SHIPPED", tmp_path / "shipped")
    log(tmp_path / "shipped" / "toy" / "dvae", [5.0, 2.0, 1.0])
    log(tmp_path / "mine" / "dvae", [5.0, 5.0])
    text = compare_run(tmp_path / "mine", "toy")
    assert "dvae, training loss: 5.000 after 100 updates, the reference 2.000: not normal" in text
    assert "dvae, test error: 0.500 after 100 updates, the reference 0.500: normal." in text
    assert (tmp_path / "mine" / "compare.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="no reference curves of 'mnist', only of toy"):
        compare_run(tmp_path / "mine", "mnist")
    with pytest.raises(ValueError, match=r"nothing to compare: .*empty has no log.jsonl"):
        compare_run(tmp_path / "empty", "toy")


def test_a_broken_log_is_named_by_its_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"loss": 1}\n')
    with pytest.raises(ValueError, match=r"log.jsonl, line 2 is not a line of a log"):
        read_log(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": null}\n')
    assert read_log(tmp_path / "log.jsonl") == {"loss": [(1, None)]}
