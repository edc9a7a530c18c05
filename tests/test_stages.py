"""Compiled blocks against plain ones, and evaluation in parts against the whole."""

import pytest
import torch

from minidalle.config import get_config
from minidalle.models import build
from minidalle.stages import CALLBACKS, _test_images
from minidalle.tokenizer import PAD
from minidalle.training.team import Alone

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
    compiled, own = [], torch.compile

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **o: own(f, **o | {"backend": count}))
    torch._dynamo.reset()
    c = get_config("toy", [*TINY, f"dalle.attention={attention}"])
    batch = batch_for(c)
    plain = loss_and_gradients(c, stage, batch, dtype)
    assert not compiled
    c = get_config("toy", [*TINY, f"dalle.attention={attention}", f"train_{stage}.compile=true"])
    fused = loss_and_gradients(c, stage, batch, dtype)
    assert len(compiled) == graphs
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
        images = [(torch.zeros(3, side, side, dtype=torch.uint8),)] * 300
        assert _test_images(images).shape == (n, 3, side, side)


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
