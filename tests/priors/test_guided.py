"""Search under CLIP, with a CLIP of one taste: is it met, and is nothing else touched?"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minidalle.cli import main
from minidalle.codebooks.vqgan import VQGAN
from minidalle.config import VQGANConfig, get_config, replace
from minidalle.dvae import DiscreteVAE
from minidalle.priors.guided import Clamp, _cut_out, search

DVAE = replace(get_config("toy").dvae, image_size=16, n_hid=8, n_init=8, vocab_size=32)
VQ = VQGANConfig(image_size=16, n_hid=8, n_pools=2, n_blocks=1, vocab_size=32, n_init=8)


class LikesRedLeft(nn.Module):
    """The feature of an image is how the colour of its left half differs from the right one's."""

    config = get_config("toy", ["clip.patch_size=8"]).clip
    wanted = torch.tensor([[1.0, -1.0, 0.0]])

    def encode_image(self, images):
        left, right = images.chunk(2, dim=3)
        return F.normalize((left - right).mean(dim=(2, 3)), dim=-1)

    def encode_captions(self, captions):
        return F.normalize(self.wanted, dim=-1).expand(len(captions), -1)


def codebook(kind):
    torch.manual_seed(0)
    model = DiscreteVAE(DVAE) if kind == "dvae" else VQGAN(VQ)
    if kind == "vqgan":  # untrained it draws grey alone
        nn.init.normal_(model.quantize.embedding.weight)
        nn.init.normal_(model.decoder.conv_out.weight, std=0.5)
    return model.eval()


@pytest.mark.parametrize("kind", ["dvae", "vqgan"])
def test_the_search_finds_what_clip_likes_and_leaves_the_models_alone(kind):
    model, clip, seen = codebook(kind), LikesRedLeft(), []
    if kind == "vqgan":  # its random images have it: the other way round
        clip.wanted = -clip.wanted
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def likes(tokens):
        wanted = clip.encode_captions(["red"])
        return (clip.encode_image(model.decode(tokens)) * wanted).sum(1).mean().item()

    def watch(step, tokens):
        assert tokens.min() >= 0 and tokens.max() < 32
        seen.append((step, likes(tokens)))

    with torch.no_grad():  # as a caller may have it
        images = search(
            model,
            clip,
            "red",
            n=3,
            steps=30,
            generator=torch.Generator().manual_seed(1),
            watch=watch,
        )
    assert images.shape == (3, 3, 16, 16) and [s for s, _ in seen] == list(range(1, 31))
    assert seen[-1][1] > seen[0][1] + 0.4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    again = search(model, clip, "red", n=3, steps=30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(images, again)


def test_a_gradient_passes_the_clamp_only_where_it_leads_back_inside():
    x = torch.tensor([-0.5, -0.5, 0.5, 0.5, 1.5, 1.5], requires_grad=True)
    y = Clamp.apply(x)
    assert y.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    (y * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])).sum().backward()  # a step goes against it
    assert x.grad.tolist() == [0.0, -1.0, 1.0, -1.0, 1.0, 0.0]


def test_cut_outs_are_squares_of_the_image_of_three_quarters_to_all_of_its_side():
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)  # the colour says where one is
    cuts = _cut_out(ramp, 64, 200, torch.Generator().manual_seed(0)).mean(dim=(1, 2))  # (200, 64)
    seen = cuts[:, -8:].mean(1) - cuts[:, :8].mean(1)  # about 7/8 of the side that was cut
    assert 0.5 < seen.min() * 8 / 7 < 0.8 and 0.95 < seen.max() * 8 / 7 < 1.1
    assert cuts[:, 0].max() > 0.2  # not always from the left edge


@pytest.mark.parametrize("changes", [dict(n=0), dict(steps=0), dict(lr=0.0), dict(cuts=0)])
def test_numbers_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match="must be positive"):
        search(codebook("dvae"), LikesRedLeft(), "red", **changes)


def test_the_command_line_searches_and_refuses_candidates(tmp_path, capsys):
    out = tmp_path / "found.png"
    call = ["generate", "a red heart", "-n", "2", "--method", "search", "--steps", "2"]
    assert main([*call, "--out", str(out)]) == 0
    assert out.is_file() and "2 images" in capsys.readouterr().out
    assert main([*call, "--candidates", "4", "--out", str(out)]) == 2
    assert "takes no --candidates" in capsys.readouterr().err
