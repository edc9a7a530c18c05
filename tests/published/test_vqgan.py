"""The VQGAN's two networks against the code that published them, on random weights."""

import pytest
import torch

from minidalle.codebooks.vqgan import VQGAN
from minidalle.config import VQGANConfig
from minidalle.published import vqgan


@pytest.mark.parametrize("gumbel", [False, True])
@torch.no_grad()
def test_a_file_made_by_taming_transformers_gives_its_features_and_images(gumbel, tmp_path):
    theirs = pytest.importorskip(
        "taming.modules.diffusionmodules.model",
        reason="optional peer: pip install --no-deps taming-transformers",
    )
    sizes = dict(ch=128, out_ch=3, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=[8])
    sizes |= dict(in_channels=3, resolution=16, z_channels=16, double_z=False)
    torch.manual_seed(0)
    encoder, decoder = theirs.Encoder(**sizes).eval(), theirs.Decoder(**sizes).eval()
    config = VQGANConfig(
        image_size=16,
        n_hid=128,
        widths=(1, 2),
        n_pools=1,
        n_blocks=1,
        vocab_size=64,
        n_init=16,
        gumbel=gumbel,
    )
    rest = VQGAN(config).state_dict()
    state = {k: v for k, v in rest.items() if not k.startswith(("encoder.", "decoder."))}
    state |= {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    state["loss.discriminator.main.0.weight"] = torch.zeros(1)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    ours = vqgan.load(tmp_path, torch.float32, config).codebook

    images = torch.rand(2, 3, 16, 16)
    z = torch.nn.functional.conv2d(
        encoder(2 * images - 1), state["quant_conv.weight"], state["quant_conv.bias"]
    )
    torch.testing.assert_close(ours.features(images), z, rtol=0, atol=1e-5)
    if gumbel:  # the largest logit
        weight = state["quantize.proj.weight"][:, :, 0, 0]
        tokens = (torch.einsum("kd,bdhw->bkhw", weight, z)
                  + state["quantize.proj.bias"][:, None, None]).argmax(1)  # fmt: skip
        codes = state["quantize.embed.weight"]
    else:  # the nearest row
        codes = state["quantize.embedding.weight"]
        tokens = torch.cdist(z.movedim(1, -1).flatten(0, 2), codes).argmin(1).view(2, 8, 8)
    assert torch.equal(ours.tokens(images), tokens)
    vectors = torch.nn.functional.conv2d(
        codes[tokens].movedim(-1, 1), state["post_quant_conv.weight"], state["post_quant_conv.bias"]
    )
    want = ((decoder(vectors) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(ours.decode(tokens), want, rtol=0, atol=1e-5)
