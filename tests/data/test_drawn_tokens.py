"""Tokens drawn from the dVAE's q (footnote 6): frequencies, numbers that decide, and refusals."""

import itertools

import pytest
import torch

from minidalle import data
from minidalle.config import get_config
from minidalle.data.captioned import InMemory
from minidalle.data.kept_tokens import draw


class Fixed(torch.nn.Module):
    """A dVAE of 2 x 2 tokens whose q is the same whatever the image."""

    def __init__(self, q):
        super().__init__()
        self.log_q = torch.nn.Parameter(torch.tensor(q).log())

    def logits(self, images):
        return self.log_q[None, :, None, None].expand(len(images), -1, 2, 2)

    def tokens(self, images):
        return self.logits(images).argmax(dim=1)


def test_each_number_falls_into_the_part_of_its_token():
    numbers = torch.tensor([[0.0, 0.24, 0.26, 0.99]])
    tokens = draw(Fixed([0.25, 0.0, 0.75]), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), numbers)
    assert tokens.tolist() == [[0, 0, 2, 2]]


def batches(dvae, draw_tokens, split="train", **part):
    images = torch.zeros(64, 3, 8, 8, dtype=torch.uint8)
    dataset = InMemory(images, ["red"] * 64, [{}] * 64, split)
    words = [
        "data.name=folder",
        "train_dalle.batch_size=8",
        f"train_dalle.draw_tokens={draw_tokens}",
    ]
    sizes = ["dvae.image_size=8", "data.image_size=8", "dalle.grid=2"]
    config = get_config("toy", [*words, *sizes])

    class Words:
        def encode_batch(self, texts, length, *rest):
            return torch.full((len(texts), length), -1)

    made = data.batches(dataset, config, "dalle", tokenizer=Words(), dvae=dvae, **part)
    return lambda start, n: [b["tokens"] for b in itertools.islice(made(start), n)]


def test_the_prior_learns_from_drawn_tokens_only_when_asked_and_is_tested_on_likeliest_ones():
    q = Fixed([0.3, 0.1, 0.6])
    drawn = torch.cat(batches(q, True)(0, 100)).flatten()
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    assert torch.allclose(share, torch.tensor([0.3, 0.1, 0.6]), atol=0.03)
    assert set(torch.cat(batches(q, False)(0, 5)).flatten().tolist()) == {2}
    assert set(torch.cat(batches(q, True, "test")(0, 5)).flatten().tolist()) == {2}


def test_drawn_tokens_depend_on_seed_update_and_row_alone():
    q = Fixed([0.3, 0.1, 0.6])
    whole = batches(q, True)(0, 6)
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(torch.stack(whole[3:]), torch.stack(batches(q, True)(3, 3)))  # resumed
    for rank in (0, 1):  # two processes see the same tokens
        for all_rows, own in zip(whole, batches(q, True, rank=rank, world=2)(0, 6), strict=True):
            assert torch.equal(all_rows[rank::2], own)


def test_a_codebook_without_probabilities_has_nothing_to_draw_from():
    class Nearest(torch.nn.Linear):
        def tokens(self, images):
            return torch.zeros(len(images), 2, 2, dtype=torch.int64)

    with pytest.raises(ValueError, match="Nearest has no q to draw"):
        batches(Nearest(1, 1), True)(0, 1)
