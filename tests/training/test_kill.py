"""Real processes, killed at random moments and resumed, end like one that was never stopped."""

import contextlib
import functools
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

    def train(self, folder, steps, slow=0.0, kill=None, started=True, wait=lambda: None):
        """Let a child train. Send it the signal `kill` once it has started and `wait` returns.

        Returns its exit code.
        """
        self.process.stdin.write(f"{folder} {steps} {slow}\n")
        pid, line = int(self.process.stdout.readline()), ""
        if started:
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
    return server.train(folder, steps, slow, kill, started, wait), saving()


def test_a_run_killed_three_times_ends_like_one_that_was_not(server, tmp_path):
    _kill_often(server, tmp_path, kills=3, steps=150, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_forty_times_ends_like_one_that_was_not(server, tmp_path, seed):
    codes, hits, errors = _kill_often(server, tmp_path, kills=40, steps=1000, seed=seed)
    print(f"{codes=} {hits=}")
    assert codes.count(-signal.SIGKILL) >= 10
    assert codes.count(3) >= 10 and "run the same command again" in errors
    assert hits >= 3 and set(codes) <= {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 3}


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
