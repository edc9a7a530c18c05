"""Search under CLIP, with a CLIP of one taste: is it met, and is nothing else touched?"""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.clip_files import random_clip, write_merges
from torch import nn

from minidalle import published
from minidalle.cli import main
from minidalle.codebooks.vqgan import VQGAN
from minidalle.config import VQGANConfig, get_config, replace, to_json
from minidalle.dvae import DiscreteVAE
from minidalle.files import save_model
from minidalle.models import build, load
from minidalle.priors.guided import Clamp, Vectors, _cut_out, search
from minidalle.stages import SHIPPED

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


def nearest_by_loop(z, codes):
    """Vectors (n, D, h, w), codes (K, D) -> the nearest code of each cell, (n, h, w)."""
    found = torch.zeros(z.shape[0], *z.shape[2:], dtype=torch.int64)
    for n, i, j in np.ndindex(*found.shape):
        found[n, i, j] = min(range(len(codes)), key=lambda k: (z[n, :, i, j] - codes[k]).norm())
    return found


def test_vectors_move_by_the_gradient_at_their_nearest_codes():
    model = codebook("vqgan").double()
    here = Vectors(model, 2, "cpu", torch.Generator().manual_seed(0))
    with torch.no_grad():  # away from the codes, where rounding matters
        here.variable.add_(0.4 * torch.randn(here.variable.shape))
    weights = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def worth(vectors):
        return (model.decode_latents(vectors) * weights).sum()

    (found,) = torch.autograd.grad((here.images() * weights).sum(), here.variable)
    tokens = nearest_by_loop(here.variable.detach(), model.codes)
    assert torch.equal(here.tokens(), tokens)
    with torch.no_grad():
        codes = model.latents(tokens)
        assert not torch.allclose(codes, here.variable, atol=0.1)
        torch.testing.assert_close(here.images(), model.decode_latents(codes))
        for place in [(0, 0, 0, 0), (1, 3, 2, 1), (0, 7, 3, 3), (1, 5, 0, 2)]:
            step = torch.zeros_like(codes)
            step[place] = 1e-5
            slope = (worth(codes + step) - worth(codes - step)) / 2e-5
            torch.testing.assert_close(found[place], slope, rtol=1e-5, atol=1e-7)


def test_the_search_of_vectors_equals_a_plain_loop():
    model, clip = codebook("vqgan"), LikesRedLeft()
    lr, steps, cuts, trail = 0.3, 6, 2, []
    search(
        model, clip, "red", 2, steps, lr, cuts, torch.Generator().manual_seed(3),
        watch=lambda step, tokens: trail.append(tokens),
    )  # fmt: skip
    g = torch.Generator().manual_seed(3)
    z = model.latents(torch.randint(32, (2, 4, 4), generator=g)).detach()
    low, high = ([f(c) for c in model.codes.T.tolist()] for f in (min, max))  # of each number
    first, second, moved = torch.zeros_like(z), torch.zeros_like(z), 0
    for step in range(1, steps + 1):
        codes = model.latents(nearest_by_loop(z, model.codes)).detach().requires_grad_()
        parts = _cut_out(Clamp.apply(model.decode_latents(codes)), 32, cuts, g)
        cosine = clip.encode_image(parts) @ clip.encode_captions(["red"])[0]
        loss = (cosine.clamp(-1, 1).arccos().square() / 2).sum() / cuts  # half the angle squared
        (slope,) = torch.autograd.grad(loss, codes)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        scale = (second / (1 - 0.999**step)).sqrt() + 1e-8
        z = z - lr * first / (1 - 0.9**step) / scale
        for d in range(z.shape[1]):
            moved += (z[:, d] > high[d]).sum() + (z[:, d] < low[d]).sum()
            z[:, d] = z[:, d].clamp(low[d], high[d])
        assert torch.equal(trail[step - 1], nearest_by_loop(z, model.codes))
    assert moved and not torch.equal(trail[0], trail[-1])  # there was something to hold back


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
    for more in (["--candidates", "4"], ["--prompt", "a.png", "--keep", "top:2"]):
        assert main([*call, *more, "--out", str(out)]) == 2
        assert "takes no --candidates" in capsys.readouterr().err


def test_the_command_line_searches_a_vqgan_that_has_no_prior(tmp_path, capsys):
    words = ["codebook=vqgan", "dvae.n_hid=8", "dvae.n_init=8", "dvae.n_blocks=1"]
    config = get_config("toy", words)
    model = build(config, "dvae")
    nn.init.normal_(model.quantize.embedding.weight)
    clip = load(SHIPPED / "toy", "clip")  # not tied to the dVAE that it was trained beside
    for stage, trained in (("dvae", model), ("clip", clip)):
        save_model(tmp_path / stage, trained.state_dict(), to_json(config))
    shutil.copytree(SHIPPED / "toy" / "tokenizer", tmp_path / "tokenizer")
    out = tmp_path / "found.png"
    call = ["generate", "a red heart", "-n", "2", "--run", str(tmp_path), "--out", str(out)]
    assert main([*call, "--method", "search", "--steps", "2"]) == 0
    assert out.is_file() and "2 images" in capsys.readouterr().out
    assert main(call) == 2 and "no trained dalle" in capsys.readouterr().err  # sampling needs one
    shutil.rmtree(tmp_path / "clip")
    assert main([*call, "--method", "search"]) == 2
    assert "no trained clip" in capsys.readouterr().err


def test_a_published_vqgan_is_searched_with_a_published_clip(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(published.CHECKPOINTS, "vqgan-f16-1024", published._vqgan(VQ, "a page"))
    torch.save({"state_dict": codebook("vqgan").state_dict()}, tmp_path / "last.ckpt")
    torch.save(random_clip(), tmp_path / "ViT-B-32.pt")
    write_merges(tmp_path)
    out = tmp_path / "found.png"
    call = ["generate", "the cat", "-n", "1", "--model", "vqgan-f16-1024", "--out", str(out)]
    call += ["--weights", str(tmp_path), "--clip", str(tmp_path)]
    assert main([*call, "--method", "search", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert out.is_file() and "1 images" in said and "CLIP scores" in said
    assert main(call) == 2 and "has no prior" in capsys.readouterr().err
