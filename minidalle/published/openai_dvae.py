"""Read the released OpenAI dVAE, two pickled modules, without running anything in them.

Source: github.com/openai/DALL-E (encoder.pkl, decoder.pkl); torch's restricted unpickler.
"""

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from minidalle.config import DVAEConfig, get_config, replace, to_json
from minidalle.dvae import DiscreteVAE
from minidalle.files import save_model

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

UNREADABLE = (UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, TypeError)


class Record:
    """Stands in for a class named in the file: holds the attributes, has no behaviour."""


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the parameters of a pickled module by their names, float32 on the CPU.

    Raises FileNotFoundError, or ValueError where the file is not such a module or names anything
    besides CLASSES and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give the downloaded encoder.pkl and decoder.pkl")
    allowed = [(type("Record", (Record,), {}), name) for name in CLASSES]
    try:
        with torch.serialization.safe_globals(allowed):
            module = torch.load(path, map_location="cpu", weights_only=True)
    except (
        UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        AttributeError,
        TypeError,
    ) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1]
        raise ValueError(f"{path} is not the released dVAE, and was not run: {reason}") from error
    if not isinstance(module, Record):
        raise ValueError(
            f"{path} holds a {type(module).__name__}, not a pickled encoder or decoder"
        )
    state: dict[str, Tensor] = {}
    _collect(module, "", state)
    return state


def _collect(module: Record, prefix: str, state: dict[str, Tensor]) -> None:
    """Add the parameters of a module and of those inside it, by nn.Module's own bookkeeping."""
    for name, value in getattr(module, "_parameters", {}).items():
        if value is not None:
            state[prefix + name] = value.detach().float()
    for name, inner in getattr(module, "_modules", {}).items():
        _collect(inner, f"{prefix}{name}.", state)


def sizes(encoder: dict[str, Tensor], decoder: dict[str, Tensor]) -> DVAEConfig:
    """Read the configuration off the shapes. Raises ValueError where a layer is missing."""
    try:
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
    except KeyError as error:
        raise ValueError(f"no layer {error}: are encoder and decoder in the right order?") from None


def convert(encoder_path: str | Path, decoder_path: str | Path, folder: str | Path) -> DiscreteVAE:
    """Write the released dVAE as folder/model.safetensors and config.json; return the model.

    Raises ValueError where the two files do not make one dVAE.
    """
    encoder, decoder = read_state(encoder_path), read_state(decoder_path)
    config = sizes(encoder, decoder)
    model = DiscreteVAE(config)
    for part, state, path in (
        (model.encoder, encoder, encoder_path),
        (model.decoder, decoder, decoder_path),
    ):
        try:
            part.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit: {' '.join(str(error).split())}") from None
    preset = get_config("12b")
    dalle = replace(preset.dalle, image_vocab=config.vocab_size, grid=config.grid)
    save_model(folder, model.state_dict(), to_json(replace(preset, dvae=config, dalle=dalle)))
    return model.eval()
