"""LPIPS against a plain loop on random weights, its files one by one, and in the VQGAN's loss."""

import pytest
import torch
import torch.nn.functional as F

from minidalle.codebooks.vqgan import VQGAN
from minidalle.config import get_config
from minidalle.models import build, make
from minidalle.published import lpips

# Of torchvision's VGG16: the number of each convolution in `features`, by level.
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
WORDS = ["codebook=vqgan", "dvae.n_hid=8", "dvae.n_init=8", "dvae.n_blocks=1"]


@pytest.fixture(scope="module")
def states():
    """Random weights of both files, by name, as torchvision and the package lpips name them."""
    torch.manual_seed(0)
    vgg, n_in = {"classifier.6.bias": torch.zeros(1000)}, 3
    for width, numbers in zip(WIDTHS, CONVOLUTIONS, strict=True):
        for i in numbers:
            vgg[f"features.{i}.weight"] = torch.randn(width, n_in, 3, 3) / (4.5 * n_in) ** 0.5
            vgg[f"features.{i}.bias"] = 0.1 * torch.randn(width)
            n_in = width
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(WIDTHS)}
    return vgg, heads


@pytest.fixture(scope="module")
def folder(states, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips")
    for state, name in zip(states, (lpips.VGG, lpips.HEADS), strict=True):
        torch.save(state, path / name)
    return path


def by_hand(states, a, b):
    """The distance of two images (3, H, W) in [0, 1], pixel by pixel."""
    vgg, heads = states
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((((2 * i - 1).movedim(0, -1) - shift) / scale).movedim(-1, 0)[None] for i in (a, b))
    total = 0.0
    for level, numbers in enumerate(CONVOLUTIONS):
        if level:
            x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
        for i in numbers:
            weight, bias = vgg[f"features.{i}.weight"], vgg[f"features.{i}.bias"]
            x, y = (F.conv2d(z, weight, bias, padding=1).relu() for z in (x, y))
        weights, cells = heads[f"lin{level}.model.1.weight"].flatten(), []
        for u, v in zip(x[0].flatten(1).T, y[0].flatten(1).T, strict=True):  # (C,) each
            cells.append((weights * (u / u.norm() - v / v.norm()) ** 2).sum())
        total += sum(cells) / len(cells)
    return total


@torch.no_grad()
def test_the_distance_is_that_of_a_plain_loop(states, folder):
    model, (a, b) = lpips.load(folder), torch.rand(2, 2, 3, 32, 16)
    want = (by_hand(states, a[0], b[0]) + by_hand(states, a[1], b[1])) / 2
    torch.testing.assert_close(model.train()(a, b), want, rtol=1e-4, atol=1e-6)
    assert want > 0.1 and model(a, a) == 0  # no dropout either


def test_its_gradient_reaches_the_image_alone_and_is_finite_where_no_feature_fires(folder):
    model = lpips.load(folder)
    for name, p in model.vgg.named_parameters():  # nothing is above zero
        p.data.fill_(0.0 if name.endswith("weight") else -1.0)
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    distance = model(image, torch.rand(1, 3, 16, 16))
    distance.backward()
    assert distance == 0 and image.grad.isfinite().all()
    model = lpips.load(folder)
    image.grad = None
    model(image, torch.rand(1, 3, 16, 16)).backward()
    assert image.grad.abs().max() > 0 and all(p.grad is None for p in model.parameters())


def test_one_option_of_the_vqgan_puts_it_into_its_loss_and_not_into_its_weights(folder):
    plain = build(get_config("toy", [*WORDS, "dvae.disc_weight=0.8"]), "dvae").train()
    config = get_config("toy", [*WORDS, "dvae.disc_weight=0.8", f"dvae.lpips={folder}"])
    model = build(config, "dvae").train()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        vectors, _ = model.quantize(model.features(images), 0, None)
        drawn = (model.decoder(model.post_quant_conv(vectors)) + 1) / 2
        looks = lpips.load(folder)(drawn, images)
    found, metrics = model.loss({"images": images}, 0)
    own, others = plain.loss({"images": images}, 0)
    torch.testing.assert_close(metrics["looks"], looks)
    torch.testing.assert_close(found - metrics["weight"] * metrics["verdict"],
                               own - others["weight"] * others["verdict"] + looks)  # fmt: skip
    assert metrics["weight"] > others["weight"]  # the critic is weighed against both
    assert isinstance(make(config.dvae), VQGAN)  # reading a run needs no such files …
    with pytest.raises(FileNotFoundError, match=lpips.VGG):  # … training does
        build(get_config("toy", [*WORDS, "dvae.lpips=nowhere"]), "dvae")


@pytest.mark.parametrize(
    "which, change, message",
    [
        (0, {"features.28.bias": None}, rf"{lpips.VGG} lacks features\.28\.bias"),
        (0, {"features.30.bias": torch.zeros(1)}, r"holds features\.30\.bias"),
        (1, {"lin4.model.1.weight": torch.zeros(1, 256, 1, 1)}, r"vgg\.pth: lin4\.model\.1\.weig"),
    ],
)
def test_a_file_that_is_not_right_is_named_with_its_key(states, tmp_path, which, change, message):
    for i, name in enumerate((lpips.VGG, lpips.HEADS)):
        state = states[i] | (change if i == which else {})
        torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        lpips.load(tmp_path)
