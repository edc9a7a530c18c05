"""The scale wing on several processes: torchrun with gloo on this machine."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import scale_workers
from helpers.scale_workers import STEPS, evaluate, examples, log, sheet, tiny

from minidalle.config import get_config
from minidalle.dalle import DALLE
from minidalle.models import read_model
from minidalle.scale import arithmetic, checkpoints
from minidalle.train import fit

pytestmark = pytest.mark.slow
WORKERS = Path(scale_workers.__file__)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKERS.parents[2])}


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


def alone(folder: Path, callbacks: dict | None = None, **changes) -> list[dict]:
    """The same training by one plain process."""
    config = tiny(**changes)
    torch.set_num_threads(1)

    def batches(step: int):
        while True:
            yield examples(step)
            step += 1

    fit(DALLE(config.dalle), batches, config.train_dalle, folder, **callbacks or {})
    return log(folder)


def assert_close(found: list[dict], wanted: list[dict], tolerance: float, names=None) -> None:
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        for name in names or ("loss", "text_nats", "image_nats", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=tolerance), (name, a, b)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    return run(2, "sharded", out) | {"out": out}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run(4, "compressed", tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def half(four):
    return four["float16"]


@pytest.fixture(scope="module")
def resized(tmp_path_factory):
    """A run that two processes begin, one goes on with, and four end."""
    out = tmp_path_factory.mktemp("resized")
    for processes, steps in ((2, 2), (1, 4), (4, STEPS)):
        found = run(processes, "resumed", out, steps)
    return found | {"out": out}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return alone(tmp_path_factory.mktemp("one"))


def test_two_processes_train_as_one(two, one):
    assert_close(two["plain"], one, 2e-5)


def test_compiled_blocks_train_sharded_as_plain_ones(two, one):
    assert_close(two["fused"], one, 2e-5)


def test_the_model_is_really_sharded(two):
    assert two["mesh"] == ["S(0)"]


def test_an_accumulated_batch_is_the_whole_batch(two, one):
    assert_close(two["accumulate"], one, 2e-5)


def test_bfloat16_weights_stay_near_float32(two, one):
    assert_close(two["bfloat16"], one, 0.01, ["loss"])


def test_float16_with_scales_stays_near_float32(two, one):
    assert_close(two["float16"], one, 0.002, ["loss", "grad_norm"])
    assert two["float16"][-1]["skipped"] == 0


def test_muon_moves_slices_as_whole_matrices(two, tmp_path):
    """Its update is of a matrix, not of numbers: it must not take a slice for one."""
    rows = alone(tmp_path, muon_lr=0.02)  # it rounds its products to bfloat16
    assert_close(two["muon"], rows, 1e-3, ["loss"])
    assert_close(two["muon"], rows, 1e-2, ["grad_norm"])


def test_updates_in_the_backward_pass_are_the_same_updates(two):
    assert_close(two["in_backward"], two["unclipped"], 2e-5)


def test_blocks_in_sixteen_bits_train_as_those_in_thirty_two(two):
    assert two["dtypes"] == ["torch.bfloat16", "torch.float32"]  # the blocks, and all else
    assert_close(two["short"], two["unclipped"], 0.01, ["loss"])


def test_clip_features_gathered_give_the_gradient_of_one_big_batch(two):
    assert two["gather"] < 1e-5


def test_a_sharded_model_draws_the_samples_that_one_process_draws(two, tmp_path):
    rows = alone(tmp_path, {"evaluate": evaluate, "sheet": sheet}, eval_every=3)
    for name in ("step-00000003.png", "step-00000006.png"):
        mine, theirs = (torch.load(f / "samples" / name) for f in (tmp_path, two["out"] / "roomy"))
        assert torch.equal(mine, theirs)
    found = log(two["out"] / "roomy")
    assert len(found) == len(rows) == STEPS + 2
    for a, b in zip(found, rows, strict=True):
        name = "test_loss" if "test_loss" in b else "loss"
        assert a[name] == pytest.approx(b[name], rel=2e-5)  # drawing moved nothing


def test_a_model_without_room_on_one_process_trains_without_samples(two):
    assert two["sheets"] == log(two["out"] / "roomy")
    assert not list((two["out"] / "cramped" / "samples").iterdir())


def test_hybrid_sharding_trains_as_one_process(four, one):
    assert_close(four["native"], one, 2e-5)


def test_the_hook_without_compression_is_native_hybrid_sharding(four):
    assert_close(four["whole"], four["native"], 1e-6)


def test_powersgd_of_full_rank_is_native_hybrid_sharding(four):
    assert_close(four["full rank"], four["native"], 1e-4)


def test_float16_scales_and_powersgd_of_full_rank_is_float16(half):
    assert_close(half["full rank"], half["plain"], 1e-4)


def test_float16_scales_and_powersgd_of_low_rank_track_float32_of_that_rank(half):
    assert_close(half["thin"], half["thin float32"], 0.002, ["loss", "grad_norm"])
    assert half["thin"][-1]["skipped"] == 0
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(half["thin"], half["plain"], strict=True)]
    assert 0 < max(gaps) < 0.02  # low rank is something else, but not far


def test_an_overflow_on_one_process_skips_the_update_everywhere(half):
    for process, found in enumerate(half["overflow"]):
        assert [row["skipped"] for row in half["overflow"][0]["rows"]] == [0, 0, 0, 1, 2, 2]
        for name in ("mlp", "queries"):
            assert found[name]["weights"] and found[name]["finite"], (process, name)


def test_an_overflow_leaves_no_trace_in_the_buffers_of_its_slice(half):
    for process, found in enumerate(half["overflow"]):
        kept = {name: (found[name]["1/error"], found[name]["1/q/0"]) for name in ("mlp", "queries")}
        assert kept["mlp"] == (True, True), process
        has_the_row = process % 2 == 0  # and its replica in the other node
        assert kept["queries"] == (has_the_row, has_the_row), process


def test_an_overflow_drops_the_scale_of_its_resblock_alone(half):
    grown = 2 ** (1 / 1000)
    for found in half["overflow"]:
        before, after, last = found["scales"][3:6]
        for new, old, dropped in ((after, before, 3), (last, after, 2)):
            ratios = [b / a for a, b in zip(old, new, strict=True)]
            wanted = [2**-0.5 if k == dropped else grown for k in range(6)]
            assert ratios == pytest.approx(wanted, rel=1e-6)


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
    assert_close(four["held"]["2"]["rows"], four["held"]["1"]["rows"], 2e-5)


def test_a_run_goes_on_with_another_number_of_processes(resized, one):
    assert_close(resized["rows"], one, 1e-4, ["loss"])


def test_a_resumed_run_is_bit_for_bit_the_run_that_was_not_stopped(tmp_path):
    rows = {}
    for name, stops in (("through", (STEPS,)), ("stopped", (4, STEPS))):
        (tmp_path / name).mkdir()
        for steps in stops:  # PowerSGD's error buffers are part of the state
            rows[name] = run(4, "resumed", tmp_path / name, steps, 8)["rows"]
    assert rows["stopped"] == rows["through"]
    weights = [read_model(tmp_path / name / "run")[0] for name in rows]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_a_sharded_checkpoint_becomes_one_file_that_a_plain_model_loads(resized, tmp_path):
    run_folder = Path(shutil.copytree(resized["out"] / "run", tmp_path / "run"))
    newest = run_folder / "checkpoints" / f"step-{STEPS:08d}"
    checkpoints.main([str(run_folder), str(tmp_path / "whole")])
    state, config = read_model(tmp_path / "whole")
    model = DALLE(config.dalle)
    model.load_state_dict(state)
    finished, _ = read_model(run_folder)  # the same averaged weights, gathered at the end
    assert all(torch.equal(state[name], finished[name]) for name in finished)
    (newest / ".metadata").unlink()
    with pytest.raises(checkpoints.CheckpointError, match="not a complete"):
        checkpoints.consolidate(newest, tmp_path / "no", config)


@pytest.mark.parametrize("ranks", [2, 4])
def test_killing_one_of_the_ranks_costs_only_the_updates_since_the_last_save(tmp_path, ranks):
    (tmp_path / "calm").mkdir()
    calm = run(ranks, "slow_run", tmp_path / "calm")["rows"]
    dice, seen = random.Random(0), 0
    for _ in range(2):
        process = start(ranks, "slow_run", tmp_path)
        seen = wait_for_saves(tmp_path / "run" / "checkpoints", seen + dice.randint(1, 3), process)
        time.sleep(dice.uniform(0, 0.2))
        kill_one_worker(process, dice)
        process.communicate(timeout=120)
    assert process.returncode != 0
    rows = run(ranks, "slow_run", tmp_path)["rows"]
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


SIZES = [
    "data.n_train=64", "data.n_test=16", "tokenizer.vocab_size=300", "dalle.text_vocab=300",
    "dvae.n_hid=16", "dalle.n_layers=2", "clip.vocab_size=302", "train_dalle.log_every=1",
    *(f"train_{s}.{f}" for s in ("dvae", "dalle") for f in ("steps=2", "batch_size=4")),
]  # fmt: skip
SCRIPTS = WORKERS.parents[2] / "docs" / "launch"
SRUN = """#!/usr/bin/env bash
# Start the command once per machine; pass SIGTERM on; end with the last failure.
shift
for i in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & started+=($!); done
trap 'kill -TERM "${started[@]}"' TERM
for pid in "${started[@]}"; do
    wait "$pid"; one=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; one=$?; done
    [ "$one" = 0 ] || code=$one
done
exit "${code:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
    show) printf 'localhost\\nlocalhost\\n' ;;
    requeue) echo "$2" >>"$REQUEUED" ;;
esac
"""


def begin(*command, programs: str | Path = "", **environment) -> subprocess.Popen:
    """Start a command with the folder `programs` and python's own programs on PATH."""
    places = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = ENVIRONMENT | {"PATH": os.pathsep.join(filter(None, places))} | environment
    return subprocess.Popen(
        list(map(str, command)), env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def call(*command, **environment) -> str:
    """Run a command to its successful end; return what it printed."""
    process = begin(*command, **environment)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text[-3000:]
    return text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a tokenizer and, from two processes, a dVAE."""
    folder = tmp_path_factory.mktemp("prepared")
    call(sys.executable, "-m", "minidalle", "tokenizer", "--folder", folder, *SIZES)
    torchrun = ("torchrun", "--standalone", "--nproc-per-node", 2, "-m", "minidalle")
    call(*torchrun, "dvae", "--folder", folder, *SIZES)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy of `prepared`, in which to train a prior."""
    return Path(shutil.copytree(prepared, tmp_path / "run"))


def test_the_loop_trains_the_prior_and_draws_samples(folder):
    call(SCRIPTS / "loop.sh", "dalle", "--folder", folder, *SIZES, PROCESSES="2")
    state, config = read_model(folder / "dalle")
    DALLE(config.dalle).load_state_dict(state)
    assert (folder / "dalle" / "samples" / "step-00000002.png").is_file()


def test_a_run_with_the_papers_compression_and_one_with_sixteen_bit_weights_go_on(folder):
    """Both are saved, resumed and written whole; the second in float32."""
    torchrun = ("torchrun", "--standalone", "--nproc-per-node", 2, "-m", "minidalle", "dalle")
    paper = ("--nodes", 2, "--compress", 16, "--fixed-q")
    small = ("--update-in-backward", "--bfloat16-weights", "train_dalle.muon_lr=0")
    for options in (paper, small):
        for more in (("--fresh",), ("train_dalle.steps=4", "train_dalle.lr_steps=2")):
            call(*torchrun, "--folder", folder, *options, *SIZES, *more)
        assert [row["step"] for row in log(folder / "dalle") if "loss" in row][-4:] == [1, 2, 3, 4]
        state, _ = read_model(folder / "dalle")
        assert {t.dtype for t in state.values()} == {torch.float32}


def test_two_processes_evaluate_in_parts_what_one_evaluates_whole(folder, tmp_path):
    """Each measures its rows of the test batch; bfloat16 slices need autocast here as well."""
    shutil.copytree(folder, tmp_path / "alone")
    command = ("-m", "minidalle", "dalle", *SIZES, "train_dalle.eval_every=1")
    call(sys.executable, *command, "--folder", tmp_path / "alone")
    wanted = [row["test_loss"] for row in log(tmp_path / "alone" / "dalle") if "test_loss" in row]
    torchrun = ("torchrun", "--standalone", "--nproc-per-node", 2, *command)
    for precision, tolerance in (("float32", 1e-4), ("bfloat16", 1e-3)):  # Muon rounds, too
        changes = ("train_dalle.accumulate=2", f"train_dalle.precision={precision}")
        call(*torchrun, *changes, "--folder", folder, "--fresh")
        found = [row["test_loss"] for row in log(folder / "dalle") if "test_loss" in row]
        assert len(found) == 2 and found[-2:] == pytest.approx(wanted, rel=tolerance)


def test_a_run_goes_on_with_one_process_of_torchrun_and_never_starts_over_unasked(folder):
    plain = (sys.executable, "-m", "minidalle", "dalle", "--folder", folder, *SIZES)
    torchrun = ("torchrun", "--standalone", "--nproc-per-node")
    command = ("-m", *plain[2:])
    call(*torchrun, 2, *command)
    call(*torchrun, 1, *command, "train_dalle.steps=3", "train_dalle.lr_steps=2")
    assert [row["step"] for row in log(folder / "dalle") if "loss" in row] == [1, 2, 3]
    for first in (plain, (*torchrun, 2, *command)):  # a plain run, then one of torchrun
        (folder / "dalle" / "model.safetensors").unlink()  # as if it were still to be finished
        process = begin(*first)
        text, _ = process.communicate(timeout=300)
        how = "with torchrun" if first is plain else "without torchrun"
        assert process.returncode and f"is of a run {how}" in text
        call(*first, "--fresh")  # leaves checkpoints of its own kind for the next
        assert [row["step"] for row in log(folder / "dalle") if "loss" in row] == [1, 2]


@pytest.fixture
def slurm(folder):
    """The environment of a job on two machines, of a cluster that does not exist."""
    programs = folder.parent / "programs"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return {
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "1", "REQUEUED": str(folder / "requeued"), "PORT": str(port),
        "programs": programs,
    }  # fmt: skip


def test_a_slurm_job_whose_time_is_up_saves_and_goes_on_when_requeued(slurm, folder):
    command = [SCRIPTS / "slurm.sh", "--preset", "toy", "--device", "cpu", "--folder", folder]
    command += [*SIZES, "train_dalle.lr_steps=1000", "train_dalle.save_every=1000"]
    job = begin(*command, "train_dalle.steps=1000", **slurm)
    written, deadline = folder / "dalle" / "log.jsonl", time.monotonic() + 300
    while not written.exists() or not written.read_text():
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0]
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    text, _ = job.communicate(timeout=300)
    done = len(log(folder / "dalle"))
    assert (folder / "requeued").read_text() == "7\n", text
    assert (folder / "dalle" / "checkpoints" / f"step-{done:08d}" / ".metadata").is_file(), text

    call(*command, f"train_dalle.steps={done + 2}", SLURM_RESTART_COUNT="1", **slurm)
    rows = [row["step"] for row in log(folder / "dalle") if "loss" in row]
    assert rows == list(range(1, done + 3))
    assert (folder / "dalle" / "model.safetensors").is_file()
    assert (folder / "requeued").read_text() == "7\n"  # finished: not again


def test_two_machines_with_a_network_between_send_what_the_formula_says(folder):
    name = f"probe{os.getpid()}"
    probe = subprocess.run(f"ip netns add {name} && ip netns delete {name}", shell=True)
    if probe.returncode:
        pytest.skip("no network namespaces here: this takes root and iproute2")
    command, sent = [SCRIPTS / "namespaces.sh", "dalle", "--fresh", "--folder", folder, *SIZES], {}
    for steps in (2, 6):
        text = call(*command, f"train_dalle.steps={steps}", PER_NODE="1")
        line = next(line for line in text.splitlines() if line.startswith("bytes from"))
        sent[steps] = int(line.split()[-2])  # to the second machine
    wanted = arithmetic.network_bytes(get_config("toy", SIZES).dalle, slices=1)
    assert (sent[6] - sent[2]) / 4 == pytest.approx(wanted, rel=0.05)
