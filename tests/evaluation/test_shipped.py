"""The checkpoints that come with a clone draw, are small, and are described."""

import json
import re
from pathlib import Path

import pytest

from minidalle.cli import main
from minidalle.data import cifar, digits, scenes
from minidalle.evaluation.candidates import draw_candidates
from minidalle.evaluation.judge import Judge
from minidalle.generate import Pipeline
from minidalle.stages import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ["mnist", "fashion_mnist", "cifar"]
MOST = 6_000_000  # bytes of one preset, its figures aside


def test_a_clone_draws_two_digits_without_a_download(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIDALLE_DATA", str(tmp_path / "nothing"))
    caption = "a red seven left of a blue two on white"
    assert main(["generate", caption, "--preset", "mnist", "-n", "2", "--threads", "1"]) == 0
    told = capsys.readouterr()
    assert "2 images" in told.out and "No training caption" not in told.err
    assert (tmp_path / "samples.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["generate", "a green eleven", "--preset", "mnist", "-n", "1"]) == 0
    assert "No training caption has eleven" in capsys.readouterr().err


def test_most_samples_show_the_digit_and_the_colour_of_the_caption():
    pipeline, judge = Pipeline.load(SHIPPED / "mnist"), Judge.load(SHIPPED / "mnist" / "judge")
    wanted = [
        ("seven", "red"), ("two", "blue"), ("three", "green"), ("zero", "pink"),
        *sorted(digits.held_out(digits.DIGITS))[:4],
    ]  # fmt: skip
    captions = [f"a {colour} {digit} on a white background" for digit, colour in wanted]
    drawn = draw_candidates(pipeline, captions, 4)
    read = judge.read(drawn.images.flatten(0, 1))
    found = list(zip(read["digit"], read["colour"], strict=True))
    right = [found[i] == wanted[i // 4] for i in range(32)]
    assert sum(right) >= 20, "chance is 0.4 of 32"


def test_most_samples_show_the_clothes_and_the_colour_of_the_caption():
    folder = SHIPPED / "fashion_mnist"
    pipeline, judge = Pipeline.load(folder), Judge.load(folder / "judge")
    wanted = [(item, "red") for item in digits.CLOTHES]
    captions = [f"a {colour} {item} on a white background" for item, colour in wanted]
    read = judge.read(draw_candidates(pipeline, captions, 3).images.flatten(0, 1))
    found = list(zip(read["item"], read["colour"], strict=True))
    right = [found[i] == wanted[i // 3] for i in range(30)]
    assert sum(right) >= 15, "chance is 0.4 of 30"


def test_most_scenes_show_two_objects_where_the_caption_wants_them():
    folder = SHIPPED / "scenes"
    pipeline, judge = Pipeline.load(folder), Judge.load(folder / "judge")
    drawn_from = scenes.draw(40, seed=3, split="bindings")
    captions = [c for c in drawn_from.captions if scenes.read_caption(c).layout][:16]
    drawn = draw_candidates(pipeline, captions, 2)
    wanted = [scenes.read_caption(c) for c in captions for _ in range(2)]
    marks = scenes.marks(judge.read(drawn.images.flatten(0, 1)), wanted)["position"]
    assert sum(marks) >= 22, "of 32; chance is below one"


def test_photographs_are_drawn_and_mostly_read_as_asked_where_clip_chooses():
    folder = SHIPPED / "cifar"
    pipeline, judge = Pipeline.load(folder), Judge.load(folder / "judge")
    classes = [names[0] for names in cifar.CLASSES]
    drawn = draw_candidates(pipeline, [f"a photo of the {name}" for name in classes], 8)
    read = judge.read(drawn.best())["class"]
    assert sum(a == b for a, b in zip(read, classes, strict=True)) >= 4, "chance is 1 of 10"


def test_the_readme_states_the_accuracy_score_of_photographs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = json.loads((SHIPPED / "cifar" / "protocol.json").read_text())["test"]["cas"]
    for who in ("samples", "training images"):
        assert f"{100 * found['accuracy'][who]['class']['share']:.1f} %" in text
    assert f"{found['images']:,} samples" in text


@pytest.mark.parametrize("name", [*PRESETS, "scenes"])
def test_they_are_small_whole_and_have_a_log_for_compare(name):
    folder = SHIPPED / name
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".png"]
    assert sum(p.stat().st_size for p in files) <= MOST
    for stage in ("dvae", "dalle", "clip"):
        lines = (folder / stage / "log.jsonl").read_text().splitlines()
        assert 10 < len(lines) < 200 and json.loads(lines[-1])["step"] > 100


@pytest.mark.parametrize("name", PRESETS)
def test_the_readme_states_the_numbers_of_their_report(name):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    report = json.loads((SHIPPED / name / "report.json").read_text())
    for kind, found in report["kinds"].items():
        row = next(r for r in text.splitlines() if r.startswith(f"| {name}, {kind} |"))
        shown = re.findall(r"([\d.]+) %", row)
        ways = ("rebuilt", "one", "best")
        assert shown == [f"{100 * found[way]['exact']['share']:.1f}" for way in ways]


def test_the_readme_states_the_numbers_of_the_scenes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    report = json.loads((SHIPPED / "scenes" / "report.json").read_text())
    names = {"seen": "seen", "held_out": "held-out pair", "bindings": "held-out binding"}
    assert f"{report['kinds']['seen']['n']} captions of each kind" in text
    for kind, found in report["kinds"].items():
        for way, title in (("one", "one sample"), ("best", "best of 16")):
            row = next(r for r in text.splitlines() if r.startswith(f"| {names[kind]}, {title} |"))
            shares = [found[way][name]["share"] for name in scenes.ROWS if name in found[way]]
            assert re.findall(r"([\d.]+) \[", row) == [f"{100 * share:.1f}" for share in shares]
