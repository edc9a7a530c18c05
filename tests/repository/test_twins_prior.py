"""Notebooks 03 and 04 write the package's transformer and prior: the twins must stay equal."""

from dataclasses import replace

import pytest
import torch
from helpers.lessons import definitions
from helpers.tiny_prior import SMALL, shake

from minidalle import attention
from minidalle.config import DALLEConfig
from minidalle.dalle import DALLE
from minidalle.tokenizer import PAD
from minidalle.transformer import Attention, Block, Transformer, layer_kinds


@pytest.fixture(scope="module")
def lesson3() -> dict:
    return definitions("03_sparse_attention")


@pytest.fixture(scope="module")
def lesson4() -> dict:
    return definitions("04_dalle")


def rough(model):
    torch.manual_seed(0)
    return shake(model).eval()


def masks(lesson3: dict, config: DALLEConfig) -> list:
    near = {kind: lesson3[kind] for kind in ("row", "column", "conv")}
    kinds = lesson3["schedule"](config.n_layers)
    return [lesson3["build"](near[kind], config.text_len, config.grid) for kind in kinds]


@pytest.mark.parametrize(("text_len", "grid"), [(1, 3), (6, 4), (5, 8)])
def test_the_masks_are_the_package_s(lesson3, text_len, grid):
    build = lesson3["build"]
    assert torch.equal(build(lesson3["row"], text_len, grid), attention.row_mask(text_len, grid))
    column = attention.column_mask(text_len, grid)
    assert torch.equal(build(lesson3["column"], text_len, grid), column)
    conv = attention.conv_mask(text_len, grid, 3)
    assert torch.equal(build(lesson3["conv"], text_len, grid), conv)


def test_the_schedule_is_the_package_s(lesson3):
    assert all(lesson3["schedule"](n) == layer_kinds(n) for n in range(1, 70))


@pytest.mark.parametrize("kind", attention.KINDS)
def test_looking_is_attending(lesson3, kind):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 22, 8)
    mask = attention.layer_mask(kind, 6, 4, 3)
    theirs = attention.attend(q, k, v, kind, 6, 4, 3)
    torch.testing.assert_close(lesson3["look"](q, k, v, mask), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", attention.KINDS)
def test_attention_and_block_are_the_package_s(lesson3, kind):
    x, mask = torch.randn(2, 22, 16), attention.layer_mask(kind, 6, 4, 3)
    for name, theirs in (("Attention", Attention(SMALL, kind)), ("Block", Block(SMALL, kind))):
        mine = lesson3[name](16, 2, mask)
        mine.load_state_dict(rough(theirs).state_dict())
        torch.testing.assert_close(mine(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_layers", [1, 2, 5])
def test_the_transformer_is_the_package_s_gradients_included(lesson3, n_layers):
    config = replace(SMALL, n_layers=n_layers)
    theirs = rough(Transformer(config))
    mine = lesson3["Transformer"](16, 2, masks(lesson3, config))
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 22, 16)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-4, atol=1e-5)
    for model in (mine, theirs):
        model(x).square().sum().backward()
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("kind", ["dense", "gathered"])
def test_tiny_dalle_is_the_package_s_prior(lesson4, kind):
    theirs = rough(DALLE(replace(SMALL, attention=kind)))
    mine = lesson4["TinyDALLE"](SMALL)
    mine.load_state_dict(theirs.state_dict())
    text, image = torch.randint(20, (3, 5)), torch.randint(12, (3, 16))
    text[0, 2:], text[1, 4:] = PAD, PAD
    torch.testing.assert_close(mine(text, image), theirs(text, image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.nats(text, image), theirs.nats(text, image))
    loss, *parts = mine.loss(text, image, SMALL.text_weight)
    want, metrics = theirs.loss({"text": text, "tokens": image})
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(parts, [metrics["text_nats"], metrics["image_nats"]])


def test_the_states_of_tiny_dalle_are_those_of_its_list(lesson4):
    model = rough(lesson4["TinyDALLE"](SMALL))
    text, image = torch.tensor([[3, 1, 4, PAD, PAD]]), torch.randint(12, (1, 16))
    states = lesson4["stream_by_list"](model, text[0], image[0])
    torch.testing.assert_close(model.states(text, image)[0], states)


def test_the_optimiser_without_its_clip_is_torch_s_adamw(lesson4):
    torch.manual_seed(0)
    a, b = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    b.load_state_dict(a.state_dict())
    mine = lesson4["AdamW"](a.parameters(), decay=0.1, clip=float("inf"))
    theirs = torch.optim.AdamW(b.parameters(), 0.01, (0.9, 0.96), weight_decay=0.1)
    for _ in range(5):
        x = torch.randn(8, 4)
        a(x).square().sum().backward()
        b(x).square().sum().backward()
        mine.step(0.01)
        theirs.step()
        theirs.zero_grad()
    torch.testing.assert_close(a.weight, b.weight)


def test_the_wrong_models_are_wrong_in_the_way_that_the_lessons_say(lesson3, lesson4):
    torch.manual_seed(0)
    text, image = torch.randint(20, (1, 5)), torch.randint(12, (1, 16))
    model = rough(lesson4["Peeking"](SMALL))
    other = image.clone()
    other[0, 7] = (other[0, 7] + 1) % 12
    moved = (model(text, image)[1] != model(text, other)[1]).any(-1)[0]
    assert moved.nonzero()[0] == 7, "it reads the token that it must guess"
    q, k, v = torch.randn(3, 6, 8)
    later = k.clone()
    later[-1] += 3
    mask = attention.causal_mask(6)
    wrongly = lesson3["look_wrongly"]
    assert not torch.allclose(wrongly(q, k, v, mask)[0], wrongly(q, later, v, mask)[0])
