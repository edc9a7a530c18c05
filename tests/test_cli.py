"""The command line as a stranger meets it: every verb, every mistake, a whole tiny run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minidalle.cli import HELP, VERBS, _set_up, build_parser, main

TINY = [
    "data.n_train=96", "data.n_test=32", "dvae.n_hid=16", "dalle.n_layers=2", "dalle.n_heads=2",
    "clip.vision_width=32", "clip.vision_heads=2", "clip.vision_layers=1", "clip.text_width=32",
    "clip.text_heads=2", "clip.text_layers=1",
    *(f"train_{s}.{f}" for s in ("dvae", "dalle", "clip")
      for f in ("steps=3", "batch_size=4", "save_every=2", "eval_every=3", "warmup=0")),
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of all stages, three updates each."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    for verb in ("tokenizer", "dvae", "dalle", "clip"):
        assert main([verb, "--run", str(folder), "--threads", "1", *TINY]) == 0
    return folder


def fails(argv, capsys):
    """Run argv, demand exit status 2 and one line on stderr, and return that line."""
    try:
        status = main(argv)
    except SystemExit as stop:  # argparse
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2, error
    line = error.strip().splitlines()[-1]
    assert "Traceback" not in error
    return line


def test_a_whole_run_leaves_every_product_and_says_what_comes_next(run, capsys):
    for stage in ("dvae", "dalle", "clip"):
        assert (run / stage / "model.safetensors").is_file()
        assert len((run / stage / "log.jsonl").read_text().splitlines()) >= 1
    assert (run / "tokenizer" / "tokenizer.json").is_file()
    assert list((run / "dalle" / "samples").glob("*.png"))
    assert main(["clip", "--run", str(run), *TINY]) == 0  # again: at once, nothing is retrained
    out = capsys.readouterr().out
    assert "finished already" in out and "Next: minidalle generate" in out


def test_generate_writes_a_picture_and_the_seed_decides_it(run, tmp_path, capsys):
    sheets = []
    for name, seed in (("a.png", "5"), ("b.png", "5"), ("c.png", "6")):
        out = tmp_path / name
        argv = ["generate", "a small red heart", "-n", "2", "--run", str(run), "--out", str(out)]
        assert main([*argv, "--seed", seed]) == 0
        sheets.append(out.read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
    assert "best first; CLIP scores" in capsys.readouterr().out


def test_images_that_no_clip_has_chosen_are_called_unranked(tmp_path, capsys):
    argv = ["generate", "a red ring", "-n", "2", "--preset", "mini_toy"]
    assert main([*argv, "--out", str(tmp_path / "x.png")]) == 0
    out = capsys.readouterr().out
    assert "unranked" in out and "nan" not in out


def test_a_finished_stage_is_not_overwritten_by_another_configuration(run, capsys):
    before = (run / "dvae" / "model.safetensors").read_bytes()
    line = fails(["dvae", "--run", str(run), *TINY, "dvae.beta=2.0"], capsys)
    assert "dvae.beta was 0.3" in line and "is now 2.0" in line and "--fresh" in line
    assert (run / "dvae" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "argv, message",
    [
        (["paint"], "invalid choice: 'paint'"),
        ([], "required: VERB"),
        (["dvae", "--preset", "huge"], "unknown preset 'huge'; choose from toy"),
        (["dvae", "dvae.width=3"], "dvae has no 'width'"),
        (["dvae", "dvae.n_hid=wide"], "'wide' is not a valid int"),
        (["dvae", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["dvae", "--seed", "-1"], "--seed must not be negative"),
        (["dvae", "--device", "abacus"], "--device abacus cannot be used here"),
        (["dvae", "--model", "openai-dvae", "--weights", "x"], "no file x/encoder.pkl"),
        (["dvae", "--model", "dalle"], "unknown model 'dalle'; choose from dalle-mini"),
        (["generate", "a cat", "--model", "openai-dvae", "--weights", "x"], "has no prior"),
        (["generate", "a cat", "--run", "nowhere"], "no trained tokenizer in nowhere"),
        (["generate", "a cat", "--preset", "own"], "no trained run in runs/own"),
        (["generate", "a cat", "--out", "cat.gif"], "must end in .png"),
        (["dalle", "--run", "nowhere"], "no trained tokenizer in nowhere: train it first"),
        (["demo", "--preset", "cifar"], "the demo draws the toy world"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in fails(argv, capsys)


def test_words_never_seen_in_training_are_named(run, tmp_path, capsys):
    argv = ["-n", "1", "--run", str(run), "--out", str(tmp_path / "x.png")]
    assert main(["generate", "a red dinosaur and a zebra", *argv]) == 0
    error = capsys.readouterr().err
    assert "No training caption has dinosaur or and or zebra: that is a guess." in error
    assert main(["generate", "a small red heart in the middle", *argv]) == 0
    assert "No training caption" not in capsys.readouterr().err


def test_characters_never_seen_are_drawn_and_a_long_caption_is_refused(run, tmp_path, capsys):
    argv = ["generate", "-n", "1", "--run", str(run), "--out", str(tmp_path / "x.png")]
    assert main([*argv, "Ein röter ☃ 星"]) == 0
    assert "at most 24 fit" in fails([*argv, "a very " + "very " * 60 + "red heart"], capsys)


def test_every_verb_has_help_with_an_example_that_parses(capsys):
    for verb, (_, example) in HELP.items():
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and "example: minidalle" in text
        words = [w.strip('"') for w in re.findall(r'"[^"]*"|\S+', example)]
        assert build_parser().parse_args([verb, *words]).verb == verb


def test_evaluate_writes_numbers_for_a_run_and_the_judge(run, tmp_path, monkeypatch, capsys):
    from minidalle.cli import SHIPPED

    if not (SHIPPED / "toy" / "judge" / "model.safetensors").is_file():
        pytest.fail("the judge's checkpoint is missing: run `make checkpoints`")
    monkeypatch.setattr("minidalle.evaluation.report.N_SHOWN", 2)
    options = ["-n", "4", "--seeds", "1", "--candidates", "2"]
    assert main(["evaluate", "--run", str(run), *options]) == 0
    assert "exact" in capsys.readouterr().out
    numbers = json.loads(next(run.rglob("report.json")).read_text())
    assert numbers


def test_ctrl_c_is_no_traceback_and_what_was_said_is_told(monkeypatch, capsys):
    def stopped(args):
        raise KeyboardInterrupt("run the same command again")

    monkeypatch.setitem(VERBS, "plan", stopped)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err.strip() == "run the same command again"


def test_importing_the_package_does_nothing_heavy():
    code = "import sys, minidalle; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_no_command_pays_for_torch_compile_unasked():
    code = "import sys, minidalle.evaluation.demo; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_torchrun_trains_on_the_gpus_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = []
    monkeypatch.setattr(torch, "empty", lambda *size, device: chosen.append(device))
    for world, options in ((None, []), ("8", []), ("8", ["--device", "cpu"])):
        if world:
            monkeypatch.setenv("WORLD_SIZE", world)
        _set_up(build_parser().parse_args(["dalle", *options]))
    assert chosen == ["cpu", "cuda", "cpu"]


def test_threads_option_sets_torchs_threads(run, tmp_path):
    before = torch.get_num_threads()
    try:
        main(["data", "--threads", "2", "--run", str(tmp_path / "toy"), *TINY])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_next_command_repeats_what_was_said(tmp_path, capsys):
    words = ["tokenizer", "data.n_train=40", "--run", str(tmp_path), "data.n_test=9", "--seed", "3"]
    assert main(words) == 0
    line = capsys.readouterr().out
    assert "Next: minidalle dvae --preset toy" in line
    for said in (f"--run {tmp_path}", "--seed 3", "data.n_train=40", "data.n_test=9"):
        assert said in line


def test_overrides_may_stand_on_both_sides_of_an_option_and_nothing_else_may():
    from minidalle.cli import _parse

    args = _parse(["plan", "dalle.n_layers=2", "--gpus", "4", "dalle.n_heads=2"])
    assert args.overrides == ["dalle.n_layers=2", "dalle.n_heads=2"] and args.gpus == 4
    for words in (["plan", "--nonsense"], ["generate", "red", "dalle.n_layers=2"]):
        with pytest.raises(SystemExit):
            _parse(words)


def test_a_seed_that_was_written_down_is_kept_unless_another_is_asked_for():
    from minidalle.cli import _config, _parse

    assert _config(_parse(["dvae", "seed=7"])).seed == 7
    assert _config(_parse(["dvae", "seed=7", "--seed", "8"])).seed == 8
    assert _config(_parse(["dvae"])).seed == 0
