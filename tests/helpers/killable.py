"""A process to kill: trains in a folder, over and over, on the orders of a test.

For each line on stdin, a JSON object, it forks a child that trains, and prints its pid, 'started'
when the first batch is asked for, and the exit code when it is gone. "verb": a verb of the command
line, or "tiny" for `fit` alone; "folder"; "options": of the verb, or the number of updates;
"threads"; "slow": seconds that are added to every flush of a save, so that many kills hit one;
"die": at which call of which function it kills itself, such as "rename 2". Forking after the
imports makes one of many starts cheap.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from minidalle import cli, files, train
from minidalle.config import TrainConfig
from minidalle.train import Stopped, fit
from minidalle.training.log import Log


class Tiny(nn.Module):
    """A regression with noise from both kinds of random numbers, and a clamp after each update."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, batch, step, generator=None):
        x = batch["x"]
        noise = 0.1 * torch.randn(x.shape, generator=generator, device=x.device)
        wrong = self.net(x + noise) * self.scale - x.sum(1, keepdim=True)
        return wrong.square().mean(), {"worst": wrong.abs().max()}

    @torch.no_grad()
    def after_update(self):
        self.scale.clamp_(max=1.05)


def batches(start):
    """Yield the batch of update start, start + 1, ..."""
    while True:
        generator = torch.Generator().manual_seed(start)
        yield {"x": torch.randn(8, 4, generator=generator)}
        start += 1


def evaluate(model, step):
    """Return a loss on fixed data, with what the callback sees of the model."""
    with torch.no_grad():
        return {"loss": model.loss(next(batches(10**6)), step, torch.Generator())[0]}


def tiny_config(steps, **changes):
    """Return a recipe that uses every part of `fit`."""
    recipe = dict(
        steps=steps, batch_size=8, lr=1e-2, warmup=5, betas=(0.9, 0.96), weight_decay=0.01,
        clip_norm=1.0, clip_variance=0.5, ema_every=2, accumulate=2,
        log_every=10, eval_every=20, save_every=7,
    )  # fmt: skip
    return TrainConfig(**recipe | changes)


MOMENTS = {
    "update": (train, "learning_rate"), "flush": (files, "_flush"), "rename": (os, "replace"),
    "delete": (Path, "unlink"), "log": (Log, "write"),
}  # fmt: skip


def main():
    """Serve orders until stdin ends."""
    torch.set_num_threads(1)
    torch.optim.SGD(Tiny().parameters())  # the first optimiser imports much of torch
    torch.autograd.set_multithreading_enabled(False)  # its threads would not survive the fork
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _obey(**order)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _announced(start):
    print("started", flush=True)
    yield from batches(start)


def _obey(verb, folder, options, threads, slow, die):
    flush = files._flush
    files._flush = lambda path: (time.sleep(slow), flush(path))
    if die:
        _arm(*die.split())
    code = 0
    try:
        torch.set_num_threads(threads)
        if verb == "tiny":
            model = Tiny()
            fit(model, _announced, tiny_config(options), folder, evaluate=evaluate)
            files.save_tensors(Path(folder) / "averaged.safetensors", model.state_dict(), {})
        else:
            sys.stdout = sys.stderr
            code = cli.main([verb, "--run", folder, "--threads", str(threads), *options])
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        code = 3
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        code = 4
    os._exit(code)


def _arm(name, number):
    """Die where the function of a moment is called for the `number`-th time."""
    home, attribute = MOMENTS[name]
    function, left = getattr(home, attribute), [int(number)]

    def armed(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(home, attribute, armed)


if __name__ == "__main__":
    main()
