"""What an image prompt keeps, that it is kept, and who sees it."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_prior import TINY
from PIL import Image

from minidalle.cli import main
from minidalle.config import DVAEConfig, MiniConfig
from minidalle.dalle import DALLE
from minidalle.data import image_prompts
from minidalle.dvae import DiscreteVAE
from minidalle.generate import sample
from minidalle.priors.mini import Mini
from minidalle.stages import SHIPPED
from minidalle.tokenizer import PAD

SMALL = replace(TINY, text_vocab=20, text_len=6, image_vocab=12, grid=4)


def drawn(keep: torch.Tensor) -> str:
    return " ".join("".join("x" if cell else "." for cell in row) for row in keep)


@pytest.mark.parametrize(
    "text, want",
    [
        ("top:1", "xxxx .... .... ...."),
        ("bottom:2", ".... .... xxxx xxxx"),
        ("left:1", "x... x... x... x..."),
        ("right:3", ".xxx .xxx .xxx .xxx"),
        ("1:3,1:2", ".... .x.. .x.. ...."),
        ("top:1+left:1+3:4,3:4", "xxxx x... x... x..x"),
    ],
)
def test_a_part_is_its_drawing(text, want):
    assert drawn(image_prompts.keep_part(text, 4)) == want


@pytest.mark.parametrize(
    "text, message",
    [
        ("up:1", "'up:1' is no part of 4 x 4"),
        ("top:5", "'top:5' is no part"),
        ("top", "such as top:2"),
        ("0:5,0:1", "'0:5,0:1' is no part"),
        ("top:4", "keeps every image token"),
        ("2:2,0:4", "keeps no image token"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        image_prompts.keep_part(text, 4)


def test_a_mask_draws_anew_every_cell_that_it_touches(tmp_path):
    mask = Image.new("RGB", (80, 80), "black")
    mask.paste("white", (21, 41, 59, 59))  # columns 1 and 2, row 2, not to their edges
    mask.save(tmp_path / "mask.png")
    assert drawn(image_prompts.keep_black(tmp_path / "mask.png", 4)) == "xxxx xxxx x..x xxxx"


def test_what_is_unseen_is_counted():
    parts = {"top:1": 0, "left:1": 3, "top:1+bottom:1": 4, "bottom:2": 8}
    for part, late in parts.items():
        said = image_prompts.describe(image_prompts.keep_part(part, 4))
        assert (f"{late} of them" in said) if late else "behind" not in said
    assert said.startswith("Keeping 8 of 16 image tokens.")


def priors():
    torch.manual_seed(0)
    mini = MiniConfig(
        text_vocab=20, text_len=7, image_vocab=12, grid=4, n_layers=2, n_heads=2, head_dim=8,
        glu_width=20,
    )  # fmt: skip
    found = DALLE(SMALL).eval(), Mini(mini).eval()
    with torch.no_grad():
        for p in (p for prior in found for p in prior.parameters()):
            p.add_(0.1 * torch.randn(p.shape))
    return found


@pytest.mark.parametrize("part", ["top:1", "left:2", "bottom:1", "1:3,1:3"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_every_prior_keeps_what_is_kept_and_draws_the_rest(part, guidance):
    keep = image_prompts.keep_part(part, 4).flatten()
    for prior in priors():
        image = torch.randint(12, (16,))
        prompt = image.masked_fill(~keep, PAD)
        options = dict(prompt=prompt, guidance=guidance)
        draws = [
            sample(
                prior, [1, 2], 3, generator=torch.Generator().manual_seed(0), use_cache=c, **options
            )
            for c in (True, False)
        ]
        assert torch.equal(*draws)
        tokens = draws[0].flatten(1)
        assert (tokens[:, keep] == image[keep]).all()
        assert ((tokens >= 0) & (tokens < 12)).all()
        assert (tokens[:, ~keep] != image[~keep]).any()


def test_cells_behind_a_kept_one_see_it_and_cells_before_do_not():
    prior, options = priors()[0], dict(temperature=0, text=[1, 2], n=1)
    images = []
    for token in range(12):
        prompt = torch.full((16,), PAD)
        prompt[7] = token
        images.append(sample(prior, prompt=prompt, **options).flatten())
    images = torch.stack(images)  # (12, 16)
    assert images[:, 7].tolist() == [*range(12)]
    differs = (images != images[:1]).any(0)
    assert not differs[:7].any() and differs[8:].any()


def test_each_image_may_keep_other_cells():
    prior, prompt = priors()[1], torch.full((2, 16), PAD)
    prompt[0, 3], prompt[1, 9] = 5, 7
    tokens = sample(prior, [1], 2, prompt=prompt).flatten(1)
    assert tokens[0, 3] == 5 and tokens[1, 9] == 7 and (tokens >= 0).all()


def test_an_image_is_cut_square_and_becomes_tokens(tmp_path):
    codebook = DiscreteVAE(DVAEConfig(image_size=32, n_hid=8, n_blocks=1, vocab_size=12, n_init=8))
    colours = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
    wide = torch.cat([torch.zeros(32, 8, 3, dtype=torch.uint8), colours, colours[:, :8]], 1)
    Image.fromarray(wide.numpy()).save(tmp_path / "wide.png")
    keep = image_prompts.keep_part("top:1", 4)
    prompt = image_prompts.read(tmp_path / "wide.png", codebook, keep)
    with torch.no_grad():
        want = codebook.tokens(colours.permute(2, 0, 1)[None] / 255)[0]
    assert prompt.view(4, 4)[0].tolist() == want[0].tolist() and (prompt[4:] == PAD).all()
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png: not an image"):
        image_prompts.read(tmp_path / "text.png", codebook, keep)
    del codebook.encoder
    with pytest.raises(ValueError, match="can only draw"):
        image_prompts.read(tmp_path / "wide.png", codebook, keep)


def test_the_command_line_keeps_a_part_or_draws_a_mask_anew(tmp_path, capsys):
    for name, colour in (("image", "navy"), ("mask", "black")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    mask = Image.open(tmp_path / "mask.png")
    mask.putpixel((12, 12), (255, 255, 255))
    mask.save(tmp_path / "mask.png")
    call = ["generate", "a small red heart on a navy background", "-n", "1", "--threads", "1"]
    call += ["--run", str(SHIPPED / "toy"), "--out", str(tmp_path / "out.png")]
    image = ["--prompt", str(tmp_path / "image.png")]
    assert main([*call, *image, "--keep", "left:4"]) == 0
    assert "Keeping 32 of 64 image tokens. 28 of them" in capsys.readouterr().out
    assert main([*call, *image, "--edit", str(tmp_path / "mask.png")]) == 0
    assert "Keeping 63 of 64" in capsys.readouterr().out
    for wrong in (image, ["--keep", "top:1"], [*image, "--keep", "top:1", "--edit", "x.png"]):
        assert main([*call, *wrong]) == 2
        assert "needs --prompt IMAGE and one of --keep, --edit" in capsys.readouterr().err
