"""Real processes, killed at chosen and at random moments, end like one that was never stopped.

What must be true after each kill: every checkpoint that has its name can be read, the same command
goes on, and the weights are bit for bit those of a run that was not killed. Of several processes
one is killed in tests/scale/test_processes.py.
"""

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minidalle.files import load_tensors
from minidalle.training.finished import product

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Server:
    """A running tests/helpers/killable.py."""

    def __init__(self, errors: Path):
        here = Path(__file__).parents[1]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here.parent}:{here}"}
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(here / "helpers" / "killable.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors.open("w"),
            text=True, bufsize=1, env=environment,
        )  # fmt: skip

    def train(self, folder, options, verb="tiny", *, die="", threads=1, slow=0.0, kill=None,
              started=True, wait=lambda: None):  # fmt: skip
        """Let a child train. Send it the signal `kill` once it has started and `wait` returns.

        Other arguments as in killable.py. Returns its exit code.
        """
        order = dict(verb=verb, folder=str(folder), options=options, threads=threads)
        self.process.stdin.write(json.dumps(order | dict(slow=slow, die=die)) + "\n")
        pid, line = int(self.process.stdout.readline()), ""
        if started and verb == "tiny" and not die:
            line = self.process.stdout.readline()
        if kill is not None:
            wait()
            with contextlib.suppress(ProcessLookupError):  # it was done already
                os.kill(pid, kill)
        while line in ("", "started\n"):
            line = self.process.stdout.readline()
        return int(line)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server") / "errors.txt") as server:
        yield server


def _files(folder):
    """Return the bytes of the averaged weights, and the last weights' file."""
    newest = max((folder / "checkpoints").glob("step-*.safetensors"))
    return (folder / "averaged.safetensors").read_bytes(), _tensors(newest)


def _tensors(path):
    """Return the tensors of a checkpoint as bytes; its header holds the wall time."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def _kill_often(server, tmp_path, kills, steps, seed):
    """Kill runs `kills` times in all, let each end, and compare it with one that was not killed.

    Returns the exit codes of the killed, how many saves were hit, and what they said.
    """
    chance, codes, hits = random.Random(seed), [], 0
    whole = tmp_path / "whole"
    assert server.train(whole, steps) == 0, server.errors.read_text()
    for number in range(10 * kills):
        broken = tmp_path / f"broken{number}"
        while len(codes) < kills:
            code, hit = _kill_once(server, broken, steps, chance)
            hits += hit
            if code == 0:  # it was done before the signal came
                break
            codes.append(code)
        else:
            assert server.train(broken, steps) == 0, server.errors.read_text()
        assert not list(broken.glob("checkpoints/*.tmp"))
        assert _files(broken) == _files(whole)
        if len(codes) == kills:
            return codes, hits, server.errors.read_text()
    raise AssertionError(f"runs of {steps} updates end before they can be killed: {codes}")


def _kill_once(server, folder, steps, chance):
    """Kill one process at a moment by chance. Returns its exit code, and whether a save was hit."""

    def saving():
        return bool(list(folder.glob("checkpoints/*.tmp")))

    def in_a_save():
        end = time.monotonic() + 2
        while not saving() and time.monotonic() < end:
            pass

    kill = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    some_time = functools.partial(time.sleep, chance.uniform(0, 0.15))
    slow, wait = chance.choice([(0.0, some_time), (0.02, some_time), (0.1, in_a_save)])
    started = wait is in_a_save or chance.random() < 0.9
    code = server.train(folder, steps, slow=slow, kill=kill, started=started, wait=wait)
    return code, saving()


@pytest.mark.slow
def test_a_run_killed_forty_times_by_chance_ends_like_one_that_was_not(server, tmp_path):
    codes, hits, errors = _kill_often(server, tmp_path, kills=40, steps=1000, seed=1)
    print(f"{codes=} {hits=}")
    assert codes.count(-signal.SIGKILL) >= 10
    assert codes.count(3) >= 10 and "run the same command again" in errors
    assert hits >= 3 and set(codes) <= {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 3}


# The first and the last update, within a save, at its renaming, after it, when an old checkpoint
# is deleted, when the log is written, and at the end.
MOMENTS = {
    "rename": (2, 1, 5, 9, 10), "update": (60, 1, 2, 31), "delete": (3, 1, 5),
    "flush": (2, 1, 3, 9), "log": (2, 1, 5, 9),
}  # fmt: skip


@pytest.fixture(scope="module")
def unkilled(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unkilled")
    assert server.train(folder, 60) == 0, server.errors.read_text()
    return _files(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [f"{name} {number}" for name, numbers in MOMENTS.items() for number in numbers]
)
def test_a_run_killed_at_this_moment_goes_on(server, unkilled, tmp_path, moment):
    assert server.train(tmp_path, 60, die=moment) == -signal.SIGKILL, server.errors.read_text()
    for path in tmp_path.glob("checkpoints/step-*.safetensors"):
        load_tensors(path)
    threads = 1 + int(moment[-1]) % 3
    assert server.train(tmp_path, 60, threads=threads) == 0, server.errors.read_text()
    assert _files(tmp_path) == unkilled and not list(tmp_path.glob("**/*.tmp"))


SMALL = [
    "data.n_train=16", "data.n_test=8", "dvae.n_hid=8", "dvae.n_init=8", "dalle.n_layers=2",
    "dalle.n_heads=2", "dalle.head_dim=8", "clip.vision_width=12", "clip.vision_layers=1",
    "clip.text_width=12", "clip.text_layers=1", "train_clip.lookalikes=0", "train_clip.rebuilt=0",
    *(f"train_{s}.{f}" for s in ("dvae", "dalle", "clip")
      for f in ("steps=6", "batch_size=4", "save_every=2", "eval_every=3", "warmup=0",
                "log_every=1", "precision=float32")),
]  # fmt: skip


STAGES = {
    "tokenizer": "flush 1; rename 1; flush 3; rename 2",
    "dvae": "update 1; rename 2; update 3; flush 3; log 4; update 6; rename 3; rename 2; rename 1",
    "dalle": "rename 1; rename 2; update 1; log 3; flush 4; update 3; rename 3; rename 2; rename 1",
    "clip": "update 2; rename 1; delete 2; log 4; update 2; flush 2; rename 2; rename 1",
}


@pytest.mark.slow
def test_every_stage_killed_again_and_again_ends_like_one_that_was_not(server, tmp_path):
    kills = 0
    for verb, moments in STAGES.items():
        for moment in moments.split("; "):
            code = server.train(tmp_path / "killed", SMALL, verb, die=moment)
            assert code in (0, -signal.SIGKILL), server.errors.read_text()
            kills += code != 0
        for folder, threads in (("killed", 1), ("whole", 1)):
            code = server.train(tmp_path / folder, SMALL, verb, threads=threads)
            assert code == 0, server.errors.read_text()
        assert not list(tmp_path.glob("**/*.tmp"))
        paths = [tmp_path / folder / verb / product(verb) for folder in ("killed", "whole")]
        assert paths[0].read_bytes() == paths[1].read_bytes() or _tensors(paths[0]) == _tensors(
            paths[1]
        )
    print(f"{kills} kills")
    assert kills >= 20


@pytest.mark.slow
def test_ctrl_c_is_no_traceback_and_the_run_goes_on_afterwards(tmp_path):
    options = ["--run", str(tmp_path), *SMALL, "train_dvae.steps=100000", "train_dvae.save_every=5"]
    command = [sys.executable, "-m", "minidalle", "dvae", *options]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    while not list(tmp_path.glob("dvae/checkpoints/step-*.safetensors")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"it ended: {process.wait(0.2)} {process.stderr.read()}")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    assert "run the same command again" in error


@pytest.mark.slow
def test_sigterm_saves_at_once_and_says_how_to_go_on(server, tmp_path):
    folder = tmp_path / "run"

    def saved():
        while not list(folder.glob("checkpoints/step-*.safetensors")):
            time.sleep(0.01)

    assert server.train(folder, 10**6, kill=signal.SIGTERM, wait=saved) == 3
    text = server.errors.read_text().strip().splitlines()[-1]
    newest = max(folder.glob("checkpoints/step-*.safetensors"))
    step = int(newest.stem.removeprefix("step-"))
    assert f"stopped after {step} of 1000000 updates, saved at {step}" in text
    assert "run the same command again" in text


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    from helpers.killable import Tiny, batches, tiny_config

    from minidalle.train import fit

    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / "log.jsonl").open("a+b") as file:
        holder = os.fork()
        if holder == 0:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX)
            (folder / "locked").touch()
            time.sleep(60)
            os._exit(0)
    while not (folder / "locked").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(ValueError, match="another process is training"):
            fit(Tiny(), batches, tiny_config(2), folder)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    fit(Tiny(), batches, tiny_config(2), folder)  # the lock died with its process
