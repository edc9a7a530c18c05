"""The palette: k-means colours, nearest by hand, averages of squares, and a prior on its tokens."""

import pytest
import torch

from minidalle.codebooks.palette import Palette
from minidalle.config import PaletteConfig, get_config
from minidalle.models import build
from minidalle.training.spread import spread_codes


def palette(n_pools=0, **changes):
    torch.manual_seed(0)
    return Palette(PaletteConfig(image_size=32, n_pools=n_pools, **{"vocab_size": 512} | changes))


def test_tokens_are_the_nearest_colours_of_pixels_or_of_averaged_squares():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for n_pools, grid in ((0, 32), (1, 16)):
        model = palette(n_pools)
        tokens = model.tokens(images)
        assert tokens.shape == (2, grid, grid) and model.grid == grid
        side = 2**n_pools
        for b, row, column in ((0, 0, 0), (1, 3, 7), (1, grid - 1, 2)):
            square = images[
                b, :, row * side : row * side + side, column * side : column * side + side
            ]
            distance = (model.codes - square.mean(dim=(1, 2))).square().sum(1)
            assert tokens[b, row, column] == distance.argmin()
        decoded = model.decode(tokens)
        assert decoded.shape == images.shape
        assert torch.equal(decoded[1, :, 5 * side, 6 * side], model.codes[tokens[1, 5, 6]])
        again = model.tokens(decoded)
        assert torch.equal(again, tokens)


def test_few_colours_are_found_exactly_by_k_means():
    g = torch.Generator().manual_seed(0)
    colours = torch.rand(6, 3, generator=g)
    images = colours[torch.randint(6, (4, 32, 32), generator=g)].movedim(-1, 1)
    model = palette(vocab_size=6)
    spread_codes(model, images, g)
    torch.testing.assert_close(model.decode(model.tokens(images)), images)
    assert model.evaluate(images, 0)["codes_used"] == 6


def test_the_loss_is_the_squared_distance_and_its_gradient_moves_colours_to_the_mean():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = palette(vocab_size=8)
    loss, _ = model.loss({"images": images}, 0)
    colours, tokens = images.movedim(1, -1).flatten(0, 2), model.tokens(images).flatten()
    torch.testing.assert_close(loss, (model.codes[tokens] - colours).square().mean())
    loss.backward()
    for k in tokens.unique():
        want = 2 * (model.codes[k] - colours[tokens == k]).sum(0) / colours.numel()
        torch.testing.assert_close(model.codes.grad[k], want.detach(), rtol=1e-4, atol=1e-7)


def test_the_prior_reads_a_token_a_pixel_unchanged():
    small = ["dalle.n_layers=4", "dalle.n_heads=2", "dalle.head_dim=8"]
    config = get_config(
        "toy", ["codebook=palette", "dvae.n_pools=0", "dvae.vocab_size=512", "dalle.grid=32",
                "dalle.image_vocab=512", *small]
    )  # fmt: skip
    prior, model = build(config, "dalle"), build(config, "dvae")
    tokens = model.tokens(torch.rand(1, 3, 32, 32)).flatten(1)
    assert tokens.shape == (1, 1024)
    text = torch.randint(1, 200, (1, config.dalle.text_len - 1))
    loss, _ = prior.loss({"text": text, "tokens": tokens}, 0, None)
    assert loss.item() == pytest.approx(0.125 * 6.2 + 0.875 * 6.2, abs=0.5)  # nearly even: ln 512
