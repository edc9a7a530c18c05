"""What notebooks 05 and 06 write before the reader's eyes computes what the package computes.

The definitions of a notebook (its classes, functions and imports, not its other lines) are
executed here, given small models with weights drawn at random, and compared with the package.
"""

import pytest
import torch
from helpers.lessons import definitions
from torch.testing import assert_close

from minidalle import clip, generate
from minidalle.attention import column_mask, conv_mask, row_mask
from minidalle.config import CLIPConfig, DALLEConfig
from minidalle.dalle import DALLE
from minidalle.tokenizer import PAD
from minidalle.transformer import layer_kinds

CLIP_CONFIG = CLIPConfig(
    image_size=16, patch_size=8, vision_width=24, vision_layers=2, vision_heads=3, vocab_size=34,
    context_length=9, text_width=16, text_layers=2, text_heads=2, embed_dim=8,
)  # fmt: skip
DALLE_CONFIG = DALLEConfig(
    text_vocab=20, text_len=5, image_vocab=11, grid=4, n_layers=4, n_heads=2, head_dim=8, kernel=3
)
SETTINGS = (
    {}, {"temperature": 0.0}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.5}, {"guidance": 2.5},
    {"prompt": torch.tensor([1, 0, 4, 4, 2])}, {"temperature": 1.7, "top_k": 5, "guidance": 0.5},
)  # fmt: skip


@pytest.fixture(scope="module")
def towers():
    """The CLIP of notebook 05 and the package's, with the same weights."""
    torch.manual_seed(0)
    mine, theirs = definitions("05_clip")["CLIP"](CLIP_CONFIG), clip.CLIP(CLIP_CONFIG)
    for parameter in theirs.parameters():  # norms and biases too: their place must matter
        torch.nn.init.normal_(parameter, std=0.3)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


@pytest.fixture(scope="module")
def prior():
    """The names of notebook 06, over a small prior of the package."""
    dalle, c = DALLE(DALLE_CONFIG), DALLE_CONFIG
    for parameter in dalle.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sizes = (c.text_len, c.grid)
    masks = {"row": row_mask(*sizes), "column": column_mask(*sizes)}
    masks["conv"] = conv_mask(*sizes, c.kernel)
    given = dict(dalle=dalle, masks=masks, grid=c.grid, N=c.grid**2)
    return definitions("06_generate", **given)


def captions(n: int) -> torch.Tensor:
    """n captions of different lengths, (n, L)."""
    text = torch.arange(n * 4).view(n, 4) % DALLE_CONFIG.text_vocab
    return text.masked_fill(torch.arange(4) > torch.arange(n)[:, None] % 4, PAD)


def test_both_towers_have_the_names_and_shapes_of_the_package(towers):
    mine, theirs = (
        {name: tensor.shape for name, tensor in model.state_dict().items()} for model in towers
    )
    assert mine == theirs


def test_the_image_tower_equals_the_package(towers):
    images = torch.rand(5, 3, 16, 16)
    mine, theirs = (model.encode_image(images) for model in towers)
    assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_text_tower_equals_the_package(towers):
    ids = clip.pack_text(torch.tensor([[3, 1, 7, 9], [5, PAD, PAD, PAD]]), CLIP_CONFIG)
    mine, theirs = (model.encode_text(ids) for model in towers)
    assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_loss_and_its_gradient_equal_the_package(towers):
    _, theirs = towers
    images, text = torch.rand(4, 3, 16, 16), torch.tensor([[1], [2], [3], [4]])
    ids = clip.pack_text(text, CLIP_CONFIG)
    contrastive_loss = definitions("05_clip")["contrastive_loss"]
    parameters = list(theirs.parameters())
    vectors = theirs.encode_image(images), theirs.encode_text(ids)
    mine = contrastive_loss(*vectors, theirs.logit_scale)
    loss, _ = theirs.loss({"images": images, "text": text}, 0)
    assert_close(mine, loss)
    pairs = (torch.autograd.grad(x, parameters, retain_graph=True) for x in (mine, loss))
    for a, b in zip(*pairs, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_captions_are_packed_as_the_package_packs_them():
    class Letters:
        def encode(self, caption):
            return [ord(letter) - ord("a") for letter in caption]

    c = CLIP_CONFIG
    given = dict(tokenizer=Letters(), config=c, start=c.vocab_size - 2, end=c.vocab_size - 1)
    pack = definitions("05_clip", **given)["pack"]
    text = torch.tensor([[1, 2, 3], [0, PAD, PAD], [PAD, PAD, PAD]])
    assert torch.equal(pack(["bcd", "a", ""]), clip.pack_text(text, c))


def test_the_cached_prior_predicts_what_the_whole_prior_predicts(prior):
    assert set(layer_kinds(DALLE_CONFIG.n_layers)) == {"row", "column", "conv"}
    text, tokens = captions(3), torch.randint(DALLE_CONFIG.image_vocab, (3, 16))
    with torch.no_grad():
        reader = prior["CachedPrior"](prior["dalle"], text)
        steps = [reader.step(tokens[:, cell - 1], cell) for cell in range(16)]
        whole = prior["dalle"](text, tokens)[1]  # (3, 16, V)
    assert_close(torch.stack(steps, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("n_captions", [1, 3])
def test_the_sampler_draws_the_tokens_of_the_package(prior, setting, n_captions):
    text = captions(n_captions)
    mine, theirs = (
        draw(torch.Generator().manual_seed(5))
        for draw in (
            lambda g: prior["sample"](text, 3, generator=g, **setting),
            lambda g: generate.sample(prior["dalle"], text, 3, generator=g, **setting),
        )
    )
    assert torch.equal(mine, theirs)


def test_the_late_reader_is_wrong_as_the_notebook_says(prior):
    text = captions(1).expand(40, -1)
    drawn = [
        prior["sample"](text, 40, reader=reader, generator=torch.Generator().manual_seed(1))
        for reader in (prior["CachedPrior"], prior["Late"])
    ]
    right, late = (tokens.flatten(1) for tokens in drawn)
    assert torch.equal(right[:, 0], late[:, 0]) and not torch.equal(right, late)
