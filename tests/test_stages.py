"""Compiled blocks against plain ones, evaluation in parts against the whole, and a run's logs."""

import json
import warnings

import pytest
import torch
from helpers.tiny_prior import Counted

from minidalle import data, stages
from minidalle.config import get_config, replace
from minidalle.models import build, load
from minidalle.stages import CALLBACKS, _test_images, train_stage, train_tokenizer
from minidalle.tokenizer import PAD
from minidalle.training.run import Alone

TINY = (
    "dalle.n_layers=4", "dalle.n_heads=2", "dvae.n_hid=4", "dvae.n_init=4",
    "clip.vision_width=16", "clip.vision_heads=2", "clip.text_width=16", "clip.text_heads=2",
)  # fmt: skip


def loss_and_gradients(config, stage: str, batch: dict, dtype) -> dict[str, torch.Tensor]:
    model = build(config, stage).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, metrics = model.loss(batch, 3, torch.Generator().manual_seed(0))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **metrics, **gradients}


def batch_for(c, n: int = 2) -> dict:
    g = torch.Generator().manual_seed(0)
    return {
        "images": torch.rand(n, 3, 32, 32, generator=g),
        "text": torch.randint(1, 200, (n, c.dalle.text_len - 1), generator=g),
        "tokens": torch.randint(0, c.dalle.image_vocab, (n, c.dalle.grid**2), generator=g),
    }


@pytest.mark.parametrize(
    "stage, attention, graphs",
    [
        ("dvae", "dense", 2),  # the encoder, and the decoder behind its codes
        ("dalle", "dense", 3),  # row, column and conv layers: the second row layer compiles nothing
        ("dalle", "gathered", 3),  # before it, after it, and the MLP; alike in all layers
        ("clip", "dense", 2),  # of images and of captions
    ],
)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
def test_compiled_blocks_train_as_plain_ones(stage, attention, graphs, dtype, monkeypatch):
    counted, own = Counted(), torch.compile
    compiled = counted.graphs
    monkeypatch.setattr(torch, "compile", lambda f, **o: own(f, **o | {"backend": counted}))
    torch._dynamo.reset()
    c = get_config("toy", [*TINY, f"dalle.attention={attention}"])
    batch = batch_for(c)
    plain = loss_and_gradients(c, stage, batch, dtype)
    assert not compiled
    c = get_config("toy", [*TINY, f"dalle.attention={attention}", f"train_{stage}.compile=true"])
    fused = loss_and_gradients(c, stage, batch, dtype)
    assert len(compiled) == graphs
    if (stage, attention) == ("dalle", "dense"):  # masks are constants, not made at each call
        assert not any("arange" in graph.code for graph in compiled)
    assert plain.keys() == fused.keys() and len(plain) > 20
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for name, value in plain.items():
        value, other = torch.as_tensor(value), torch.as_tensor(fused[name])
        assert (other - value).norm() <= tolerance * (value.norm() + 1e-3), name


def test_a_test_batch_in_parts_gives_the_loss_of_the_whole():
    class Images(list):
        def caption(self, i: int) -> str:
            return self[i]

    found = []
    for n in (1, 2, 4):
        c = get_config("toy", [*TINY, f"train_dalle.accumulate={n}"])
        batch = batch_for(c, 4)
        batch["text"][1, 3:] = PAD  # captions differ in length
        evaluate, _ = CALLBACKS["dalle"](
            c, Images(["red"]), batch, Alone(), tokenizer=None, dvae=None
        )
        found.append(evaluate(build(c, "dalle").eval(), 0))
    for other in found[1:]:
        assert list(other) == ["loss", "text_nats", "image_nats"]  # the first decides on the best
        assert {k: v.item() for k, v in other.items()} == pytest.approx(
            {k: v.item() for k, v in found[0].items()}, rel=1e-5
        )


def test_the_dvaes_test_images_fit_whatever_their_size():
    for side, n in ((32, 256), (64, 256), (128, 64), (256, 16)):
        images = [(torch.full((3, side, side), 255, dtype=torch.uint8),)] * 300
        assert torch.equal(_test_images(images), torch.ones(n, 3, side, side))


# ---------------------------------------------------------------- a run of a few updates

RUN = get_config(
    "toy",
    [
        *TINY, "data.n_train=8", "data.n_test=12",
        *(f"train_{s}.{f}" for s in ("dvae", "dalle", "clip")
          for f in ("steps=2", "batch_size=4", "warmup=0", "precision=float32")),
    ],
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_tokenizer(RUN, folder)
    for stage in ("dvae", "dalle", "clip"):
        assert (folder / "cache").exists() == (stage == "clip")  # tokens, kept by the prior
        train_stage(RUN, stage, folder)
    return folder


def logged(run, stage) -> dict[str, float]:
    """Return the last evaluation of a stage."""
    return json.loads((run / stage / "log.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("stage", ["dalle", "clip"])
def test_the_logged_test_loss_is_that_of_the_finished_model_on_the_first_test_batch(run, stage):
    parts = dict(tokenizer=load(run, "tokenizer"), dvae=load(run, "dvae"))
    batch = next(data.batches(data.load(RUN, "test"), RUN, stage, **parts)(0))
    with torch.no_grad():
        loss, metrics = load(run, stage).loss(batch, 2)
    found = logged(run, stage)
    for name, value in {"loss": loss, **metrics}.items():
        assert found[f"test_{name}"] == pytest.approx(float(value), rel=1e-5), name


def test_the_logged_reconstructions_are_those_of_the_finished_dvae(run):
    model, test_set = load(run, "dvae"), data.load(RUN, "test")
    images = torch.stack([test_set[i][0] for i in range(12)]) / 255
    tokens = model.tokens(images)
    error = (model.decode(tokens) - images).square().mean()
    found = logged(run, "dvae")
    assert found["test_psnr"] == pytest.approx(-10 * torch.log10(error).item(), rel=1e-5)
    assert found["test_codes_used"] == len(tokens.unique())
    assert list(found)[1] == "test_bound"  # the first decides which checkpoint is best
    assert found["test_bound"] == -found["test_elbo"]


def test_a_fresh_start_sets_aside_what_was_there(run):
    before = load(run, "dvae").state_dict()
    train_stage(RUN, "dvae", run)  # done already
    assert not (run / "dvae" / "checkpoints-old-1").exists()
    train_stage(RUN, "dvae", run, fresh=True)
    assert (run / "dvae" / "checkpoints-old-1").exists()
    torch.testing.assert_close(load(run, "dvae").state_dict(), before, rtol=0, atol=0)


def test_first_codes_are_spread_over_images_of_the_training_set(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(stages, "spread_codes", lambda model, images, g: seen.append(images))
    train_stage(RUN, "dvae", tmp_path)
    train_set = data.load(RUN, "train")
    assert torch.equal(seen[0], torch.stack([train_set[i][0] for i in range(8)]) / 255)


@pytest.mark.parametrize("cores, threads", [(None, 1), (1, 1), (2, 1), (7, 3), (8, 4)])
def test_half_the_cores_are_used_unless_the_environment_says_otherwise(cores, threads, monkeypatch):
    said = []
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    stages.use_half_the_cores()
    monkeypatch.delenv("OMP_NUM_THREADS")
    stages.use_half_the_cores()
    assert said == [threads]


class Two(Alone):
    world = 2


@pytest.mark.parametrize("off", ["lookalikes", "rebuilt"])
def test_several_processes_choose_no_hard_negatives_of_either_kind(off, tmp_path):
    c = replace(RUN, train_clip=replace(RUN.train_clip, **{off: 0.0}))
    with pytest.raises(ValueError, match=r"several processes need train_clip.lookalikes=0"):
        train_stage(c, "clip", tmp_path, team=Two())


@pytest.mark.parametrize(
    "values, warned",
    [
        ("steps=9 warmup=8", False),
        ("steps=9 warmup=9", True),
        ("steps=9 warmup=3 lr_steps=4", False),
        ("steps=9 warmup=3 lr_steps=3", True),
        ("steps=9 warmup=3 lr_steps=0", False),
    ],
)
def test_a_warm_up_that_takes_the_whole_schedule_is_warned_of(
    values, warned, tmp_path, monkeypatch
):
    def stop(*_):
        raise InterruptedError

    monkeypatch.setattr(data, "load", stop)  # what follows is not looked at
    c = get_config("toy", [f"train_dvae.{value}" for value in values.split()])
    with warnings.catch_warnings(record=True) as found, pytest.raises(InterruptedError):
        warnings.simplefilter("always")
        train_stage(c, "dvae", tmp_path)
    assert ["takes the whole schedule" in str(w.message) for w in found] == [True] * warned


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stage", ["dvae", "dalle", "clip"])
def test_a_gpu_trains_compiled_blocks_as_the_cpu_does_plain_ones(stage):
    c = get_config("toy", TINY)
    batch = batch_for(c)
    plain = build(c, stage).eval()  # no noise: it differs between devices
    fused = build(get_config("toy", [*TINY, f"train_{stage}.compile=true"]), stage).cuda().eval()
    forward = {
        "dvae": lambda m, b: (
            m.logits(b["images"]).mean()
            + m.decode_vectors(m.code_vectors(b["tokens"].view(2, 8, 8)))[0]
        ),
        "dalle": lambda m, b: m(b["text"], b["tokens"])[1],
        "clip": lambda m, b: m.loss(b, 0)[0],
    }[stage]
    want = forward(plain, batch)
    got = forward(fused, {k: v.cuda() for k, v in batch.items()})
    torch.testing.assert_close(got.cpu(), want, atol=1e-3, rtol=1e-3)
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in fused.parameters() if p.grad is not None)
