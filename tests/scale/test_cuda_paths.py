"""Does everything that a GPU user runs stay on the GPU? Tried on a pretended one.

Results must be those of the CPU, no kernel may meet tensors of two devices, and a loop may make the
CPU wait for the GPU only where it must.
"""

import gc
import json
import os
import re
import subprocess
import sys
import weakref
from contextvars import Context
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.pretend_cuda import pretend_cuda

from minidalle.attention import attend, flex
from minidalle.cli import main
from minidalle.config import DALLEConfig, TrainConfig
from minidalle.dalle import DALLE
from minidalle.generate import sample
from minidalle.scale import memory, precision
from minidalle.train import fit
from minidalle.training.optim import Average, make_optimizer
from minidalle.transformer import Transformer

SMALL = DALLEConfig(
    text_vocab=32, text_len=6, image_vocab=16, grid=4, n_layers=4, n_heads=2, head_dim=8, kernel=3,
    caption_dropout=0.1,
)  # fmt: skip
TRAIN = TrainConfig(3, 4, 1e-2, clip_norm=1.0, clip_variance=1.0, ema_decay=0.9)
RUN = [
    "data.n_train=48", "data.n_test=16", "dvae.n_hid=16", "dvae.vocab_size=64",
    "dalle.image_vocab=64", "dalle.n_layers=2", "dalle.n_heads=2", "clip.vision_width=32",
    "clip.vision_heads=2", "clip.vision_layers=1", "clip.text_width=32", "clip.text_heads=2",
    "clip.text_layers=1",
    *(f"train_{s}.{f}" for s in ("dvae", "dalle", "clip")
      for f in ("steps=1", "batch_size=4", "save_every=1", "eval_every=1", "warmup=0")),
]  # fmt: skip


@pytest.fixture
def kernels(monkeypatch):
    with pretend_cuda(monkeypatch) as kernels:
        yield kernels


def batch(step: int, size: int = 4) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    text = torch.randint(-1, 32, (size, 5), generator=g)
    return {"text": text, "tokens": torch.randint(16, (size, 16), generator=g)}


def batches(start: int):
    while True:
        yield batch(start)
        start += 1


def test_the_pretended_gpu_refuses_what_a_gpu_refuses(kernels):
    x = torch.arange(3.0, device="cuda")
    assert x.device.type == "cuda" and (x + 1).sum().device.type == "cuda"
    assert x.cpu().device.type == "cpu" and x.new_zeros(2).is_cuda
    x.mul(torch.tensor(2.0)), x[torch.tensor([0, 2])]  # scalars and indices may lie elsewhere
    mistakes = {
        "two devices": lambda: x + torch.zeros(3),
        "a mask": lambda: x.masked_fill(torch.zeros(3, dtype=torch.bool), 0.0),
        "stacked scalars": lambda: torch.stack([x.sum(), torch.tensor(1.0)]),
        "a generator": lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
        "numpy": lambda: x.numpy(),
    }
    for name, mistake in mistakes.items():
        with pytest.raises((RuntimeError, TypeError), match=r"cuda|cpu"):
            mistake()
            pytest.fail(name)
    before = kernels.waits
    assert x.max() > 1 and kernels.waits == before + 1


@pytest.mark.parametrize(
    "method, checkpointing",
    [
        ("dense", True),
        ("gathered", False),
        ("flex", True),
        *(pytest.param(*case, marks=pytest.mark.slow)
          for case in (("dense", False), ("gathered", True), ("flex", False))),
    ],
)  # fmt: skip
def test_a_run_on_a_gpu_is_the_run_on_a_cpu(method, checkpointing, kernels, tmp_path):
    c = replace(SMALL, attention=method, checkpointing=checkpointing)
    found, waits = {}, {}
    for device in ("cpu", "cuda"):
        # torch can not train with flex on a CPU
        here = c if device == "cuda" else replace(c, attention="dense")
        model, kernels.waits = DALLE(here), 0
        found[device] = fit(model, batches, TRAIN, tmp_path / device, device=device)
        assert model.image_start.device.type == device
        waits[device] = kernels.waits
    for name in ("loss", "grad_norm", "text_nats"):
        assert found["cuda"][name] == pytest.approx(found["cpu"][name], rel=1e-4), name
    assert waits["cuda"] <= 2 * TRAIN.steps + len(found["cuda"]), waits  # one for `bad`, then logs


def test_a_run_on_a_gpu_goes_on_from_its_checkpoint(kernels, tmp_path):
    config, model, whole = replace(TRAIN, lr_steps=3), DALLE(SMALL), DALLE(SMALL)
    fit(whole, batches, config, tmp_path / "whole", device="cuda")
    fit(model, batches, replace(config, steps=2), tmp_path / "parts", device="cuda")
    again = DALLE(SMALL, seed=1)
    fit(again, batches, config, tmp_path / "parts", device="cuda")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and b.is_cuda


def test_bfloat16_on_a_gpu_follows_float32(kernels, tmp_path):
    losses = []
    for name in ("float32", "bfloat16"):
        config = replace(TRAIN, precision=name)
        found = fit(DALLE(SMALL), batches, config, tmp_path / name, device="cuda")
        losses.append(found["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


@pytest.mark.parametrize(
    "options",
    [{}, {"guidance": 2.0}, {"prompt": torch.arange(5)}, {"top_k": 4, "top_p": 0.9}, {"wide": 1}],
)
def test_images_drawn_on_a_gpu_are_those_of_a_cpu_and_wait_for_nothing(options, kernels):
    options = dict(options)
    text = [1, 2] if not options.pop("wide", 0) else batch(0, 3)["text"]
    drawn = []
    for device in ("cpu", "cuda"):
        model = DALLE(replace(SMALL, head_dim=16)).to(device).eval()
        with torch.no_grad():
            model.image_head.weight *= 50  # else every draw is a coin's
        g, kernels.waits = torch.Generator().manual_seed(0), 0
        tokens = sample(model, text, 3, generator=g, **options)
        assert tokens.device.type == device
        drawn.append(tokens.cpu())
    assert torch.equal(*drawn)
    assert kernels.waits == 0


@pytest.mark.slow
def test_a_whole_run_its_images_and_its_evaluation_on_a_gpu(kernels, tmp_path):
    for verb in ("tokenizer", "dvae", "dalle", "clip"):
        command = [verb, "--run", str(tmp_path / "toy"), "--threads", "1", "--device", "cuda", *RUN]
        assert main(command) == 0, verb
    assert list((tmp_path / "toy" / "dalle" / "samples").glob("*.png"))
    where = ["--run", str(tmp_path / "toy"), "--threads", "1", "--device", "cuda"]
    image = ["-n", "2", "--candidates", "3", "--out", str(tmp_path / "p.png")]
    assert main(["generate", "a red circle", *where, *image]) == 0
    assert (tmp_path / "p.png").is_file()
    assert main(["evaluate", *where, "-n", "2", "--candidates", "2", *RUN]) == 0
    log = (tmp_path / "toy" / "clip" / "log.jsonl").read_text().splitlines()
    assert "test_loss" in json.loads(log[-1])


@pytest.mark.parametrize(
    "weights", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)]
)
def test_updates_in_the_backward_pass_stay_on_the_gpu(weights, kernels):
    ends = []
    for device in ("cpu", "cuda"):
        model = DALLE(SMALL).to(device, weights)
        optimizer = memory.backward_adamw(model, TRAIN)
        average = Average(model, 0.9, every=2, host=True)
        for step in range(3):
            kernels.waits = 0
            here = {name: ids.to(device) for name, ids in batch(step).items()}
            draws = torch.Generator().manual_seed(step)  # whose caption is dropped
            model.loss(here, step, draws)[0].backward()
            optimizer.end_update(list(model.parameters()), 1.0)
            average.update(step)
            # is the norm finite; the rest are seeds of generators
            assert kernels.waits <= 1
        assert all(v.device.type == "cpu" for v in average.values)
        average.swap()
        ends.append(model.image_start.float().cpu())
        assert model.image_start.device.type == device
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-3)


def test_a_model_that_updates_in_its_backward_pass_can_be_forgotten():
    model = DALLE(SMALL)
    optimizer = memory.backward_adamw(model, TRAIN)
    model.loss(batch(0))[0].backward()
    states = [weakref.ref(p) for p in model.parameters()]
    states += [weakref.ref(s["exp_avg"]) for s in optimizer.state.values()]
    del model, optimizer
    gc.collect()
    assert not any(state() is not None for state in states)


def test_an_optimiser_in_the_backward_pass_hears_of_the_rate():
    model = DALLE(SMALL)
    optimizer = memory.backward_adamw(model, TRAIN)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = model.image_start.clone()
    model.loss(batch(0))[0].backward()
    assert torch.equal(model.image_start, before) and model.image_start.grad is None


def test_gradient_scales_of_float16_follow_the_model(kernels):
    for device in ("cpu", "cuda"):
        model = DALLE(SMALL).to(device)
        scales, optimizer = precision.ResblockScales(model), make_optimizer(model, TRAIN)
        kernels.waits = 0
        model.loss({name: ids.to(device) for name, ids in batch(0).items()})[0].backward()
        finite = scales.unscale()
        optimizer.step()
    assert finite and kernels.waits <= len(scales.branches) + 2


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
@pytest.mark.parametrize("size", [(6, 4, 3), (64, 16, 5)])  # the second: 320 states, 2.5 tiles
def test_the_masks_of_flex_are_the_dense_ones_on_a_gpu(kind, size, kernels):
    q, k, v = torch.randn(3, 1, 2, size[0] + size[1] ** 2, 8).to("cuda").unbind(0)
    got = attend(q, k, v, kind, *size, "flex")
    torch.testing.assert_close(got.cpu(), attend(q, k, v, kind, *size, "dense").cpu())
    seen = flex._block_mask(kind, *size, q.device).to_dense()
    assert seen.shape[-1] == -(-q.shape[2] // 128)


@pytest.mark.slow
def test_flex_compiles_as_many_kernels_as_it_is_asked_for_in_every_thread(monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="eager", **options))
    flex._compiled.cache_clear()
    attention = flex._compiled()
    flex._compiled.cache_clear()

    def run(kind: str, size: int) -> None:
        q = torch.randn(size, 1, 22, 16)
        with torch.no_grad(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            flex.flex(q, q, q, kind, 6, 4, 3)

    monkeypatch.setattr(flex, "flex_attention", attention)
    backward_pass = Context()  # torch 2.13 keeps its limit in a context, as a new thread has one
    for size in (1, 2, 3):
        for kind in ("row", "column", "conv"):  # the ninth is one more than torch's limit
            backward_pass.run(run, kind, size)


def test_compiled_blocks_make_their_masks_of_flex_once(monkeypatch):
    made, real = [], flex.create_block_mask
    monkeypatch.setattr(flex, "create_block_mask", lambda *a, **k: made.append(1) or real(*a, **k))
    compiled = torch.compile(flex.flex_attention, dynamic=False, backend="eager")
    monkeypatch.setattr(flex, "flex_attention", compiled)
    flex._block_mask.cache_clear()
    c = replace(SMALL, n_heads=1, head_dim=16, attention="flex")
    plain, fused = (Transformer(replace(c, attention=a)).eval() for a in ("dense", "flex"))
    fused.load_state_dict(plain.state_dict())
    for block in fused.blocks:
        block.compile(dynamic=False, backend="eager")
    x = torch.randn(1, 22, 16)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fused(x), plain(x))
    assert len(made) == 3  # row, column, conv


BENCHMARK = """
import os, sys
sys.path.insert(0, sys.argv[1])
import one_device, this_machine
from minidalle.config import get_config, replace
toy = get_config("toy", ["dalle.n_layers=2", "dalle.n_heads=2"])
rates = one_device.Rates(1e11, 1e10)
one_device.alone("cpu")
for config in (toy, replace(toy, preset="12b")):  # the second updates in the backward pass
    one_device.gpu_training(config, rates, "cpu", rounds=1)
one_device.gpu_drawing(toy, rates, "cpu", at_once=2, ways=(False,))
this_machine.show_here(toy, layers=1, updates=3, candidates=2)
sys.stdout.flush()
os._exit(0)  # gloo's threads sometimes abort the interpreter on its way out
"""


@pytest.mark.slow
def test_the_benchmark_of_one_gpu_runs_on_a_cpu():
    folder = Path(__file__).parents[2] / "benchmarks"
    command = [sys.executable, "-c", BENCHMARK, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 3 and losses[2] < losses[0]
    held, planned = re.search(r"caches ([\d.]+) GiB, arithmetic ([\d.]+)", done.stdout).groups()
    assert held == planned
    assert done.stdout.count("model FLOPs utilisation") == 4 and "pictures/s" in done.stdout
