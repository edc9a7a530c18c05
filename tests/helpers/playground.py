"""What the tests of the playground share: its build script, captions, and models of odd sizes."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from minidalle.clip import CLIP
from minidalle.config import get_config
from minidalle.dalle import DALLE
from minidalle.dvae import DiscreteVAE
from minidalle.evaluation.judge import Judge
from minidalle.tokenizer import BPETokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
PLAYGROUND = ROOT / "docs" / "playground"
TOY = ROOT / "data" / "checkpoints" / "toy"
_spec = importlib.util.spec_from_file_location("playground_build", PLAYGROUND / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

CAPTIONS = [
    "a large red heart in the middle on a white background",
    "small yellow ring, top left, navy background",
    "on a grey background, a little violet plus in the lower right",
]
ODD_SIZES = {
    "data": {"image_size": 24},
    "tokenizer": {"vocab_size": 290},
    "dvae": {"image_size": 24, "n_hid": 8, "n_blocks": 2, "gain": "none", "vocab_size": 37},
    "dalle": {"text_vocab": 290, "text_len": 41, "image_vocab": 37, "grid": 6, "n_layers": 6},
    "clip": {"image_size": 24, "patch_size": 6, "vision_width": 20, "vision_layers": 2},
}
ODD_SIZES["dvae"] |= {"n_init": 10}
ODD_SIZES["dalle"] |= {"n_heads": 3, "head_dim": 10, "kernel": 5}
ODD_SIZES["clip"] |= {"vision_heads": 5, "vocab_size": 292, "context_length": 45}
ODD_SIZES["clip"] |= {"text_width": 18, "text_layers": 1, "text_heads": 2, "embed_dim": 7}


def write_odd_models(folder: Path, judge: bool = False) -> Path:
    """Write untrained models of other sizes than any preset, with a deep judge if asked."""
    torch.manual_seed(0)
    if judge:
        values = {"shape": ("a", "b", "c"), "colour": ("red", "blue")}
        network = Judge(values, 24, (4, 6, 5, 8), blocks=2)
        network(torch.rand(64, 3, 24, 24))  # moves the averages of the norms
        network.save(folder / "judge")
    sizes = [f"{part}.{k}={v}" for part, fields in ODD_SIZES.items() for k, v in fields.items()]
    config = get_config("toy", sizes)
    tokenizer = BPETokenizer.train(CAPTIONS * 3, 290)
    tokenizer.save(folder / "tokenizer" / "tokenizer.json")
    models = {
        "dvae": DiscreteVAE(config.dvae),
        "dalle": DALLE(config.dalle),
        "clip": CLIP(config.clip),
    }
    for stage, model in models.items():
        (folder / stage).mkdir()
        if stage == "dalle":  # the small first weights would make attention and logits flat
            for parameter in model.parameters():
                parameter.data += 0.15 * torch.randn(parameter.shape)
        weights = {name: value.half() for name, value in model.state_dict().items()}
        save_file(weights, folder / stage / "model.safetensors")
    for stage in ("tokenizer", *models):
        text = json.dumps(dataclasses.asdict(config))
        (folder / stage / "config.json").write_text(text)
    return folder
