"""The questions about codebooks are asked rightly, and what is stored answers them."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from minidalle.attention import causal_mask, dense
from minidalle.config import get_config, replace
from minidalle.models import build

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["dvae.n_hid=8", "dvae.vocab_size=12", "dalle.image_vocab=12", "dvae.n_init=8",
         "dalle.n_layers=2", "dalle.n_heads=2", "dalle.head_dim=8"]  # fmt: skip


@pytest.fixture(scope="module")
def questions():
    sys.path.insert(0, str(FOLDER))  # it imports codebooks.py, as a script does
    spec = importlib.util.spec_from_file_location("questions", FOLDER / "codebook_questions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FOLDER))
    return module


def test_what_is_stored_answers_the_questions(questions):
    found = json.loads(questions.RESULTS.read_text(encoding="utf-8"))
    assert {"masks", "search", "bound", "joint"} <= set(found) <= set(questions.QUESTIONS)
    gathered, dense_too, everything = found["masks"]
    assert {row["states"] for row in found["masks"]} == {1056}
    assert gathered["image_nats"] == pytest.approx(dense_too["image_nats"], abs=0.01)
    assert everything["attention"].startswith("all")
    for row in found["joint"]:
        assert row["bound"] == pytest.approx(row["pixels"] + row["prior"], abs=1e-3)


def test_with_a_uniform_prior_both_stages_at_once_are_the_first_stage(questions):
    dvae = build(get_config("toy", SMALL), "dvae")
    batch = {"images": torch.rand(2, 3, 32, 32), "text": torch.zeros(2, 24).long()}

    def uniform(text, tokens):
        return None, torch.zeros(*tokens.shape, 12)

    for step in (0, 2500):
        found, want = (
            f(torch.Generator().manual_seed(step))
            for f in (
                lambda g, step=step: questions.joint_loss(dvae, uniform, batch, step, g),
                lambda g, step=step: dvae.loss(batch, step, g)[0],
            )
        )
        torch.testing.assert_close(found, want)


def test_the_opponent_of_the_masks_sees_every_earlier_state(questions):
    prior = build(get_config("toy", SMALL), "dalle")
    attention, x = prior.transformer.blocks[0].attention, torch.randn(2, 89, 16)
    for weights in attention.parameters():
        torch.nn.init.normal_(weights)
    q, k, v = attention.project(x)
    want = attention.merge(dense(q, k, v, causal_mask(89)))
    assert not torch.allclose(attention(x), want, atol=1e-4)
    questions.see_everything(prior)
    torch.testing.assert_close(attention(x), want, rtol=1e-3, atol=1e-3)


def test_the_bound_with_a_uniform_prior_charges_at_most_ln_k_a_token(questions):
    config = get_config("toy", SMALL)
    dvae = build(replace(config, seed=1), "dvae").eval()
    images, text = torch.rand(3, 3, 32, 32), torch.zeros(3, config.dalle.caption_len).long()
    found = questions.bound(dvae, {"prior": build(config, "dalle").eval()}, images, text)
    logits = dvae.logits(images)
    entropy = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy().sum() / 3
    want = 64 * torch.tensor(12.0).log() - entropy  # the KL; found is one sample of it
    assert found["uniform"] == pytest.approx(want.item(), abs=8)
    assert found["prior"] == pytest.approx(found["uniform"], abs=8)  # untrained: nearly uniform


def test_the_curve_of_a_search_ends_with_the_verdict_of_what_it_found(questions):
    pipeline, judge = questions.Pipeline.load(questions.TOY), questions.find_judge("toy")
    codebook = build(get_config("toy", ["codebook=vqvae", "dvae.n_hid=8"]), "dvae").eval()
    torch.nn.init.normal_(codebook.codes)
    captions, wanted = ["a red star", "a blue ring"], [{"shape": "star"}, {"shape": "ring"}]
    curve = questions.climb(codebook, pipeline, judge, captions, wanted, steps=3)
    assert list(curve) == [1, 2]
    rows = []
    for i, caption in enumerate(captions):
        g = torch.Generator().manual_seed(i)
        images = questions.search(codebook, pipeline.reranker, caption, 1, 2, generator=g)
        rows.append(questions.verdict(images.detach(), caption, wanted[i], pipeline, judge))
    assert curve[2] == pytest.approx([(a + b) / 2 for a, b in zip(*rows, strict=True)], abs=1e-6)
