"""The scale wing on several processes: torchrun with gloo on this machine."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scale_workers
import torch
from scale_workers import STEPS, examples, log, tiny

from minidalle.checkpoint import load_model
from minidalle.config import get_config
from minidalle.dalle import DALLE
from minidalle.scale import checkpoints, powersgd
from minidalle.train import fit

pytestmark = pytest.mark.slow
WORKERS = Path(scale_workers.__file__)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKERS.parents[1])}


def start(processes: int, name: str, out: Path, *arguments) -> subprocess.Popen:
    """torchrun with one of the experiments of scale_workers.py."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", str(WORKERS), name, str(out), *map(str, arguments),
    ]  # fmt: skip
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(processes: int, name: str, out: Path, *arguments) -> dict:
    """Run an experiment to its end and return what it found."""
    process = start(processes, name, out, *arguments)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text[-3000:]
    return json.loads((out / f"{name}.json").read_text())


def alone(folder: Path, **changes) -> list[dict]:
    """The same training by one plain process."""
    config = tiny(**changes)
    torch.set_num_threads(1)

    def batches(step: int):
        while True:
            yield examples(step)
            step += 1

    fit(DALLE(config.dalle), batches, config.train_dalle, folder)
    return log(folder)


def assert_close(found: list[dict], wanted: list[dict], tolerance: float, names=None) -> None:
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        for name in names or ("loss", "text_nats", "image_nats", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=tolerance), (name, a, b)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(2, "sharded", tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run(4, "compressed", tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return alone(tmp_path_factory.mktemp("one"))


def test_two_processes_train_as_one(two, one):
    assert_close(two["plain"], one, 2e-5)


def test_the_model_is_really_sharded(two):
    assert two["mesh"] == ["S(0)"]


def test_an_accumulated_batch_is_the_whole_batch(two, one):
    # A part's text loss is the mean over its own captions, so the two differ a little.
    assert_close(two["accumulate"], one, 3e-3, ["loss", "image_nats"])


def test_bfloat16_weights_stay_near_float32(two, one):
    assert_close(two["bfloat16"], one, 0.01, ["loss"])


def test_float16_with_scales_stays_near_float32(two, one):
    assert_close(two["float16"], one, 0.002, ["loss", "grad_norm"])
    assert two["float16"][-1]["skipped"] == 0


def test_updates_in_the_backward_pass_are_the_same_updates(two):
    assert_close(two["in_backward"], two["unclipped"], 2e-5)


def test_clip_features_gathered_give_the_gradient_of_one_big_batch(two):
    assert two["gather"] < 1e-5


def test_hybrid_sharding_trains_as_one_process(four, one):
    assert_close(four["native"], one, 2e-5)


def test_the_hook_without_compression_is_native_hybrid_sharding(four):
    assert_close(four["whole"], four["native"], 1e-6)


def test_powersgd_of_full_rank_is_native_hybrid_sharding(four):
    assert_close(four["full rank"], four["native"], 1e-4)


def test_powersgd_sends_the_bytes_that_the_formula_says(four):
    c, d = tiny().dalle, tiny().dalle.width
    sent = {int(rank): n for rank, n in four["thin rank"]["bytes"].items()}
    with torch.device("meta"):
        model = DALLE(c)
    total = sum(p.numel() for p in model.parameters())
    assert sent[0] == pytest.approx(4 * total / 2, rel=0.01)  # padding of odd rows
    whole = 4 * 12 * d * d * c.n_layers / 2  # of the blocks' matrices, sliced in two
    rank, slices = 8, 2
    sides = (4 * (d / slices + d) + 2 * (4 * d / slices + d)) * rank / slices
    assert sent[0] - sent[8] == pytest.approx(whole - 4 * sides * c.n_layers, rel=1e-6)
    assert four["thin rank"]["equal"]  # all replicas took the same update


def test_parts_of_a_batch_cross_nodes_once(four):
    assert four["held"]["2"]["bytes"] == four["held"]["1"]["bytes"]
    assert_close(four["held"]["2"]["rows"], four["held"]["1"]["rows"], 3e-3, ["loss"])


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, one):
    for processes, steps in ((2, 2), (1, 4), (4, STEPS)):
        found = run(processes, "resumed", tmp_path, steps)
    assert_close(found["rows"], one, 1e-4, ["loss"])


def test_a_resumed_run_is_bit_for_bit_the_run_that_was_not_stopped(tmp_path):
    rows = {}
    for name, stops in (("through", (STEPS,)), ("stopped", (4, STEPS))):
        (tmp_path / name).mkdir()
        for steps in stops:  # PowerSGD's error buffers are part of the state
            rows[name] = run(4, "resumed", tmp_path / name, steps, 8)["rows"]
    assert rows["stopped"] == rows["through"]
    weights = [load_model(tmp_path / name / "run")[0] for name in rows]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_a_sharded_checkpoint_becomes_one_file_that_a_plain_model_loads(tmp_path):
    run(2, "resumed", tmp_path, 2)
    newest = tmp_path / "run" / "checkpoints" / "step-00000002"
    checkpoints.main([str(tmp_path / "run"), str(tmp_path / "whole")])
    state, config = load_model(tmp_path / "whole")
    model = DALLE(config.dalle)
    model.load_state_dict(state)
    finished, _ = load_model(tmp_path / "run")  # the same averaged weights, gathered at the end
    assert all(torch.equal(state[name], finished[name]) for name in finished)
    (newest / ".metadata").unlink()
    with pytest.raises(checkpoints.CheckpointError, match="not a complete"):
        checkpoints.consolidate(newest, tmp_path / "no", config)


def test_killing_one_of_four_ranks_costs_only_the_updates_since_the_last_save(tmp_path):
    (tmp_path / "calm").mkdir()
    calm = run(4, "slow_run", tmp_path / "calm")["rows"]
    dice, seen = random.Random(0), 0
    for _ in range(2):
        process = start(4, "slow_run", tmp_path)
        seen = wait_for_saves(tmp_path / "run" / "checkpoints", seen + dice.randint(1, 3), process)
        time.sleep(dice.uniform(0, 0.3))
        kill_one_worker(process, dice)
        process.communicate(timeout=120)
    assert process.returncode != 0
    rows = run(4, "slow_run", tmp_path)["rows"]
    assert rows == calm  # bit for bit, every update of it


def wait_for_saves(folder: Path, step: int, process: subprocess.Popen) -> int:
    """Wait for a complete checkpoint of at least `step` updates; return its number."""
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and process.poll() is None:
        done = [int(p.parent.name[5:]) for p in folder.glob("step-*/.metadata")]
        if done and max(done) >= step:
            return max(done)
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0][-3000:])


def kill_one_worker(process: subprocess.Popen, dice: random.Random) -> None:
    """kill -9 one of torchrun's processes; torchrun ends the others."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(dice.choice(children)), signal.SIGKILL)


def test_the_command_line_under_torchrun(tmp_path):
    """torchrun -m minidalle: tokenizer, dVAE, then the prior on two processes."""
    sizes = [
        "data.n_train=64", "data.n_test=16", "tokenizer.vocab_size=300", "dalle.text_vocab=300",
        "dvae.n_hid=16", "dalle.n_layers=2", "clip.vocab_size=302",
        *(f"train_{s}.{f}" for s in ("dvae", "dalle") for f in ("steps=2", "batch_size=4")),
    ]  # fmt: skip
    for stage, processes in (("tokenizer", 1), ("dvae", 2), ("dalle", 2)):
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command = [sys.executable, "-m", *(torchrun if processes > 1 else ()), "--"]
        command = [c for c in command if processes > 1 or c != "--"]
        command += ["minidalle", stage, "--run", str(tmp_path), *sizes]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    state, config = load_model(tmp_path / "dalle")
    DALLE(config.dalle).load_state_dict(state)


def test_paper_rank_and_saving():
    assert powersgd.paper_rank(get_config("12b").dalle.width) == 896
