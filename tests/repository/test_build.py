"""What data/checkpoints/build.py computes and keeps beside training."""

import importlib.util
import json
from pathlib import Path

import torch

PATH = Path(__file__).resolve().parents[2] / "data" / "checkpoints" / "build.py"
SPEC = importlib.util.spec_from_file_location("build", PATH)
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)


def test_plain_codes_spend_no_more_bits_than_tokens():
    images = torch.rand(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = (images * 3).clamp(0, 1)  # extremes occur
    for bits, levels in ((8, (8, 8, 4)), (9, (8, 8, 8))):
        small = build.plain_colours(images, 8, bits)
        assert small.shape == (50, 3, 8, 8)
        for channel, most in enumerate(levels):
            assert len(small[:, channel].unique()) <= most
        assert torch.tensor(levels).prod() == 2**bits


def test_plain_codes_keep_flat_colours_and_blur_the_rest():
    flat = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert torch.allclose(build.plain_codes(flat, 8, 9), flat, atol=1e-5)
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1
    assert build.plain_codes(stripes, 8, 9).std() < 0.01


def test_a_thinned_log_keeps_every_test_and_the_last_steps():
    rows = [{"step": i, "loss": 1 / i, "lr": 0.123456789} for i in range(1, 301)]
    rows += [{"step": 300, "test_loss": 0.5}]
    kept = [json.loads(line) for line in build.thin("\n".join(map(json.dumps, rows))).splitlines()]
    assert kept[-1] == {"step": 300, "test_loss": 0.5} and kept[-2]["step"] == 300
    assert len(kept) == build.N_LINES + 1 and kept[0] == {"step": 5, "loss": 0.2, "lr": 0.12346}
