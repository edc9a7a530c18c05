"""Real processes, killed at random moments and resumed, end like one that was never stopped."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Server:
    """A running tests/killable.py."""

    def __init__(self, errors: Path):
        here = Path(__file__).parent
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here.parent}:{here}"}
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(here / "killable.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors.open("w"),
            text=True, bufsize=1, env=environment,
        )  # fmt: skip

    def train(self, folder, steps, slow=0.0, kill=None, when=lambda: None):
        """Let a child train; send it the signal `kill` once `when` returns. Returns its exit code."""
        self.process.stdin.write(f"{folder} {steps} {slow}\n")
        pid = int(self.process.stdout.readline())
        if kill is not None:
            when()
            with contextlib.suppress(ProcessLookupError):  # it was done already
                os.kill(pid, kill)
        return int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def _files(folder):
    """Return the bytes of the averaged weights, and the last weights' file."""
    newest = max((folder / "checkpoints").glob("step-*.safetensors"))
    return (folder / "averaged.safetensors").read_bytes(), _tensors(newest)


def _tensors(path):
    """Return the tensors of a checkpoint as bytes; its header holds the wall time."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def _kill_often(tmp_path, kills, steps, seed):
    """Kill a run `kills` times, then let it end.

    Returns (exit codes of the killed, how often a save was hit, whether it equals the whole run).
    """
    chance = random.Random(seed)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    codes, in_save = [], 0
    with Server(tmp_path / "errors.txt") as server:
        assert server.train(whole, steps) == 0, server.errors.read_text()
        while len(codes) < kills:
            kill = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            slow = chance.choice([0.0, 0.02])
            seconds = chance.uniform(0.02, 0.3)
            codes.append(server.train(broken, steps, slow, kill, lambda s=seconds: time.sleep(s)))
            in_save += bool(list(broken.glob("checkpoints/*.tmp")))
        assert server.train(broken, steps) == 0, server.errors.read_text()
    assert not list(broken.glob("checkpoints/*.tmp"))
    assert _files(broken) == _files(whole)
    return codes, in_save, server.errors.read_text()


def test_a_run_killed_three_times_ends_like_one_that_was_not(tmp_path):
    _kill_often(tmp_path, kills=3, steps=400, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_forty_times_ends_like_one_that_was_not(tmp_path, seed):
    codes, in_save, errors = _kill_often(tmp_path, kills=40, steps=4000, seed=seed)
    print(f"{codes=} {in_save=}")
    assert codes.count(-signal.SIGKILL) >= 10 and 0 not in codes
    assert codes.count(3) >= 10 and "run the same command again" in errors
    assert in_save >= 3 and set(codes) <= {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 3}


def test_sigterm_saves_at_once_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"

    def saved():
        while not list(folder.glob("checkpoints/step-*.safetensors")):
            time.sleep(0.01)

    with Server(tmp_path / "errors.txt") as server:
        assert server.train(folder, 10**6, kill=signal.SIGTERM, when=saved) == 3
    text = server.errors.read_text().strip().splitlines()[-1]
    newest = max(folder.glob("checkpoints/step-*.safetensors"))
    step = int(newest.stem.removeprefix("step-"))
    assert f"stopped after {step} of 1000000 updates, saved at {step}" in text
    assert "run the same command again" in text


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    from killable import Tiny, batches, tiny_config

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
