"""What a run tells: a progress bar for the terminal, log.jsonl for programs, TensorBoard if asked.

Source: this project; one JSON object a line, https://jsonlines.org.
"""

import contextlib
import json
import math
import sys
import time
from pathlib import Path

from torch import Tensor
from tqdm import tqdm


class Log:
    """Collects the metrics of a run and writes their means; a process that is not main is silent.

    While it is open no other process can open one in the same folder.
    """

    def __init__(self, folder: Path, *, is_main: bool = True, tensorboard: bool = False):
        self.is_main, self.file, self.board, self.bar = is_main, None, None, None
        self.sums, self.count, self.time = {}, 0, time.monotonic()
        if is_main:
            self.file = (folder / "log.jsonl").open("a+b")
            _lock(self.file, folder)
        if is_main and tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError("TensorBoard is not installed: pip install tensorboard") from None
            self.board = SummaryWriter(str(folder))

    def begin(self, step: int, steps: int, title: str, state: dict | None = None) -> None:
        """Start after `step` updates of `steps`: lines of later updates will be written again.

        state: what `state` returned then.
        """
        if state:
            self.count, self.sums = state["count"], dict(state["sums"])
        # disable=None: silent where stderr is not a terminal, as in a notebook or a log file
        silent = None if self.is_main else True
        self.bar = tqdm(initial=step, total=steps, desc=title, disable=silent)
        self.time = time.monotonic()
        if self.file is not None:
            _trim(self.file, step)

    def add(self, metrics: dict) -> None:
        """Take in the metrics, tensors or numbers, of one update."""
        for name, value in metrics.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Return the means since the last call, and forget them."""
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state(self) -> dict:
        """Return what is summed up but not yet written, as plain values."""
        return {"count": self.count, "sums": {k: float(v) for k, v in self.sums.items()}}

    def lap(self) -> float:
        """Return the seconds since the last call."""
        before, self.time = self.time, time.monotonic()
        return self.time - before

    def write(self, row: dict) -> None:
        """Write one line; row holds "step" and numbers. A full disk costs the line, not the run."""
        if not self.is_main:
            return
        row = {k: v if math.isfinite(v) else None for k, v in row.items()}  # JSON knows no NaN
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if v is not None})
        try:
            self.file.write(json.dumps(row).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            self.say(f"could not write the log: {error}")
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, math.nan if value is None else value, row["step"])

    def say(self, text: str) -> None:
        """Print one line on stderr, above the bar."""
        if self.is_main:
            tqdm.write(text, file=sys.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for output in (self.bar, self.file, self.board):
            if output is not None:
                with contextlib.suppress(OSError):  # the disk is full: the line is lost anyway
                    output.close()


def read_log(path: str | Path) -> dict[str, list[tuple[int, float | None]]]:
    """Return each metric of a log.jsonl as (updates done, value); None was not finite.

    Raises ValueError for a line that is no such record.
    """
    curves: dict[str, list[tuple[int, float | None]]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            step = row.pop("step")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is not a line of a log: {error}") from None
        for name, value in row.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def _lock(file, folder: Path) -> None:
    """Raise ValueError where another process writes this log. The lock dies with its process."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"another process is training in {folder}; wait or stop it") from None
    except OSError:  # a network disk without locks
        return


def _trim(file, step: int) -> None:
    """Cut a log at the first line of an update after `step`, or that a kill left unfinished."""
    file.seek(0)
    end = 0
    for line in file:
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        end += len(line)
    file.truncate(end)
