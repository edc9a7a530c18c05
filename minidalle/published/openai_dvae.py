"""Read the released OpenAI dVAE, two pickled modules, without running anything in them.

Source: github.com/openai/DALL-E (encoder.pkl, decoder.pkl); torch's restricted unpickler.
"""

from pathlib import Path

import torch
from torch import Tensor

from minidalle.config import DVAEConfig, replace
from minidalle.dvae import DiscreteVAE
from minidalle.published import weights
from minidalle.published.weights import Parts, fill

HALVES = ("encoder", "decoder")
# Everything that the two files may name. Each becomes an inert Record, whatever its name.
CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
    "torch.nn.modules.linear.Identity",
)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the parameters of a pickled module by their names, float32 on the CPU.

    Raises FileNotFoundError, or ValueError where the file is something else or names anything
    besides CLASSES and tensors.
    """
    state = weights.read_state(path, inert=CLASSES)
    return {name: value.detach().float() for name, value in state.items()}


def sizes(encoder: dict[str, Tensor], decoder: dict[str, Tensor]) -> DVAEConfig:
    """Read the configuration off the shapes. Raises KeyError or IndexError where one is missing."""
    n_groups = len({name.split(".")[1] for name in encoder if ".group_" in name})
    blocks = {name.split(".")[2] for name in encoder if name.startswith("blocks.group_1.")}
    return replace(
        DVAEConfig(),
        n_hid=encoder["blocks.input.w"].shape[0],
        n_blocks=len(blocks),
        n_pools=n_groups - 1,
        vocab_size=encoder["blocks.output.conv.w"].shape[0],
        n_init=decoder["blocks.input.w"].shape[0],
    )


def make() -> Parts:
    """Make the model without weights."""
    return Parts(codebook=DiscreteVAE(DVAEConfig()))


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> Parts:
    """Load the dVAE from a folder that holds encoder.pkl and decoder.pkl, always in float32.

    Raises FileNotFoundError, or ValueError where the two files do not make one dVAE.
    """
    paths = [Path(folder) / f"{half}.pkl" for half in HALVES]
    encoder, decoder = map(read_state, paths)
    try:
        with torch.device("meta"):
            model = DiscreteVAE(sizes(encoder, decoder))
    except (LookupError, RuntimeError, ArithmeticError) as error:
        raise ValueError(
            f"{paths[0]} and {paths[1].name} have the layers of no dVAE (in this order?): {error}"
        ) from None
    fill(model.encoder, encoder, paths[0])
    fill(model.decoder, decoder, paths[1])
    return Parts(codebook=model.eval().requires_grad_(False))
