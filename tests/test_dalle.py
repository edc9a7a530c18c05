"""The joint stream: its size, its states, its likelihood, and no leak from later tokens."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_prior import SMALL, shake

from minidalle.config import PRESETS
from minidalle.dalle import DALLE
from minidalle.tokenizer import PAD
from minidalle.train import split_batch


def make(config=SMALL, **changes) -> DALLE:
    return shake(DALLE(replace(config, **changes))).eval()


@pytest.fixture(autouse=True)
def fixed():
    torch.manual_seed(0)


def pair(batch=2, config=SMALL):
    text = torch.randint(config.text_vocab, (batch, config.text_len - 1))
    text[0, 3:] = PAD
    return text, torch.randint(config.image_vocab, (batch, config.grid**2))


def test_the_paper_has_12_billion_parameters():
    config = PRESETS["12b"].dalle
    with torch.device("meta"):
        model = DALLE(config)
    assert 12 * config.width**2 * config.n_layers == 12_092_178_432  # "12.0e9", table 1
    assert sum(p.numel() for p in model.parameters()) == 12_292_808_448 + 2 * 3968


@pytest.mark.parametrize("attention", ["dense", "gathered", "auto"])
def test_the_model_runs_on_the_meta_device(attention):
    with torch.device("meta"):
        model = DALLE(replace(SMALL, attention=attention))
        text, image = pair()
    loss, _ = model.loss({"text": text.to("meta"), "tokens": image.to("meta")}, 0)
    loss.backward()
    assert loss.shape == () and model.text_start.grad.shape == (16,)


def test_it_has_no_buffers_to_lose_on_the_way_from_meta():
    assert not list(DALLE(SMALL).buffers())


def test_every_state_is_what_the_design_says():
    model, (text, image) = make(), pair()
    states = model.embed_text(text)
    assert torch.equal(states[0, 0], model.text_start + model.positions.weight[0])
    for i in range(5):
        if text[0, i] == PAD:  # the pad of this position, and no position on top
            want = model.pads.weight[i + 1]
        else:
            want = model.text_embedding.weight[text[0, i]] + model.positions.weight[i + 1]
        torch.testing.assert_close(states[0, i + 1], want)
    states = model.embed_image(image[:, :-1])
    for cell in range(16):
        token = model.image_embedding.weight[image[0, cell - 1]] if cell else model.image_start
        want = token + model.rows.weight[cell // 4] + model.columns.weight[cell % 4]
        torch.testing.assert_close(states[0, cell], want)


def test_every_parameter_but_the_first_pad_is_used():
    model, (text, image) = make(), pair(batch=40)
    text[1] = PAD
    model.loss({"text": text, "tokens": image})[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert not model.pads.weight.grad[0].any()  # position 0 is always start-of-text
    assert model.pads.weight.grad[1:].any(1).all()


@pytest.mark.parametrize("attention", ["dense", "gathered"])
@pytest.mark.parametrize("n_layers", [1, 2, 5])
def test_no_token_changes_the_prediction_of_itself_or_an_earlier_one(attention, n_layers):
    model, (text, image) = make(attention=attention, n_layers=n_layers), pair(batch=1)
    before = torch.cat([x.flatten() for x in predictions(model, text, image)])
    for j in range(5 + 16):
        text2, image2 = text.clone(), image.clone()
        if j < 5:  # a pad becomes a word, a word another one
            text2[0, j] = (text[0, j] + 1) % 20
        else:
            image2[0, j - 5] = (image[0, j - 5] + 1) % 12
        after = torch.cat([x.flatten() for x in predictions(model, text2, image2)])
        same = torch.isclose(before, after, atol=1e-6, rtol=0)
        assert same[: j + 1].all(), j
        assert j == 20 or not same[j + 1 :].all(), j  # yet it matters later on


def predictions(model, text, image):
    """One number for each predicted token, in the order of the stream."""
    text_logits, image_logits = model(text, image)
    return text_logits.logsumexp(-1)[0], image_logits.logsumexp(-1)[0]


@pytest.mark.parametrize("attention", ["dense", "gathered"])
def test_no_gradient_flows_from_a_prediction_to_its_token_or_a_later_one(attention):
    model, (text, image) = make(attention=attention), pair(batch=1)
    stream = torch.cat([model.embed_text(text), model.embed_image(image[:, :-1])], 1)
    stream = stream.detach().requires_grad_()
    states = model.transformer(stream)  # state i knows the tokens before i
    for i in range(stream.shape[1]):
        (grad,) = torch.autograd.grad(states[0, i].square().sum(), stream, retain_graph=True)
        assert not grad[0, i + 1 :].any()
        assert grad[0, : min(i + 1, 6)].any(1).all()  # all text so far, pads included


def test_loss_is_an_eighth_text_and_seven_eighths_image():
    model, (text, image) = make(), pair()
    loss, metrics = model.loss({"text": text, "tokens": image}, 0)
    text_logits, image_logits = model(text, image)
    p_text, p_image = text_logits.log_softmax(-1), image_logits.log_softmax(-1)
    words = [p_text[b, i, text[b, i]] for b in range(2) for i in range(5) if text[b, i] != PAD]
    cells = [p_image[b, i, image[b, i]] for b in range(2) for i in range(16)]
    text_nats, image_nats = -sum(words) / len(words), -sum(cells) / len(cells)
    assert len(words) == 8
    torch.testing.assert_close(metrics["text_nats"], text_nats.detach())
    torch.testing.assert_close(metrics["image_nats"], image_nats.detach())
    torch.testing.assert_close(loss, text_nats / 8 + image_nats * 7 / 8)


def test_losses_of_two_parts_average_to_that_of_the_whole():
    model, (text, image) = make(), pair(batch=4)
    batch = {"text": text, "tokens": image}
    whole, _ = model.loss(batch, 0)
    one, two = split_batch(batch, 2, "cpu")
    assert (one["text"] != PAD).sum() != (two["text"] != PAD).sum()
    torch.testing.assert_close((model.loss(one, 0)[0] + model.loss(two, 0)[0]) / 2, whole)


def test_loss_of_captions_that_are_all_empty_is_finite():
    model, (text, image) = make(), pair()
    loss, metrics = model.loss({"text": text.fill_(PAD), "tokens": image}, 0)
    assert metrics["text_nats"] == 0 and loss.isfinite()


def test_a_new_model_predicts_nothing_in_particular():
    text, image = pair()
    _, metrics = DALLE(SMALL).loss({"text": text, "tokens": image}, 0)
    assert metrics["text_nats"].item() == pytest.approx(math.log(20), rel=0.02)
    assert metrics["image_nats"].item() == pytest.approx(math.log(12), rel=0.02)


def test_log_likelihood_is_a_distribution_over_captions_and_pictures():
    config = replace(SMALL, text_vocab=3, text_len=3, image_vocab=2, grid=2, n_layers=2)
    model = make(config)
    texts = torch.tensor(list(itertools.product(range(3), repeat=2)))  # (9, 2)
    images = torch.tensor(list(itertools.product(range(2), repeat=4)))  # (16, 4)
    text, image = texts.repeat_interleave(16, 0), images.repeat(9, 1)
    text_ln, image_ln = model.log_likelihood(text, image)
    torch.testing.assert_close((text_ln + image_ln).exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(image_ln.view(9, 16).exp().sum(1), torch.ones(9))
    assert image_ln.std() > 0.01  # not by being uniform


def test_log_likelihood_adds_up_to_the_loss():
    model, (text, image) = make(), pair()
    text_ln, image_ln = model.log_likelihood(text, image)
    _, metrics = model.loss({"text": text, "tokens": image}, 0)
    torch.testing.assert_close(-text_ln.sum() / 8, metrics["text_nats"])
    torch.testing.assert_close(-image_ln.sum() / 32, metrics["image_nats"])


def test_caption_dropout_empties_captions_in_training_only():
    model, (text, image) = make(caption_dropout=0.5), pair(batch=64)
    batch, seen = {"text": text, "tokens": image}, []
    model.embed_text = lambda t: seen.append(t) or DALLE.embed_text(model, t)
    model.loss(batch, 0)  # in evaluation
    assert torch.equal(seen.pop(), text)
    model.train()
    losses = [model.loss(batch, 0, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    empty = (seen[0] == PAD).all(1)
    assert 16 < empty.sum() < 48
    assert torch.equal(seen[0][~empty], text[~empty])
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_bfloat16_autocast_is_close():
    model, (text, image) = make(), pair(batch=8)
    batch = {"text": text, "tokens": image}
    want, _ = model.loss(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = model.loss(batch, 0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=0.02, rtol=0.02)


def test_a_grid_of_tokens_is_as_good_as_a_row():
    model, (text, image) = make(), pair()
    torch.testing.assert_close(model(text, image.view(2, 4, 4)), model(text, image))


def test_it_learns_a_picture_by_heart():
    model, (text, image) = DALLE(SMALL), pair()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss, metrics = model.loss({"text": text, "tokens": image}, 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert metrics["image_nats"] < 0.05
    assert F.softmax(model(text, image)[1], -1).gather(2, image[:, :, None]).min() > 0.5
