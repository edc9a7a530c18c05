"""Checkpoints that others trained: one table of their names, one file a family.

Source: the places that `files` names in each row.
"""

import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import requests
import torch
from torch import nn

from minidalle.config import DVAEConfig, get_config, replace, to_json
from minidalle.files import digest, find, places, save_model
from minidalle.files import fetch as fetch_file
from minidalle.published import dalle_mini, mindalle, openai_clip, openai_dvae, rudalle, vqgan
from minidalle.published.weights import Parts


class Checkpoint(NamedTuple):
    """One published model: `make` builds its parts without weights, `load` reads them."""

    make: Callable[[], Parts]
    load: Callable[[Path, torch.dtype], Parts]  # from a folder that holds `files`
    files: dict[str, str]  # each with its repository on the Hugging Face hub, or its web page
    licence: str  # of the weights
    options: str = ""  # of `generate`, with which its authors sample
    archive: str = ""  # the web address of all files in one .tar.gz; its folder there is its MD5


def _vqgan(config, page: str) -> Checkpoint:
    files = {"last.ckpt": f"https://heibox.uni-heidelberg.de/d/{page}/"}
    load = partial(vqgan.load, config=config)
    return Checkpoint(partial(vqgan.make, config), load, files, "MIT")


def _clip(config, size: int) -> Checkpoint:
    weights = f"timm/vit_base_patch{size}_clip_224.openai"
    files = {
        "open_clip_model.safetensors": weights,
        "merges.txt": f"openai/clip-vit-base-patch{size}",
    }
    return Checkpoint(partial(openai_clip.make, config), openai_clip.load, files, "MIT")


def _mini(config, suffix: str) -> Checkpoint:
    names = (f"vocab{suffix}.json", f"merges{suffix}.txt", "detoker.pt")
    names += (f"encoder{suffix}.pt", f"decoder{suffix}.pt")
    load = partial(dalle_mini.load, config=config)
    files = dict.fromkeys(names, "kuprel/min-dalle")
    make, options = partial(dalle_mini.make, config), "--guidance 16 --top-k 256"
    return Checkpoint(make, load, files, "Apache-2.0", options)


def _rudalle(file: str, at: str, **options) -> Checkpoint:
    others = dict.fromkeys((rudalle.CODEBOOK, rudalle.VOCABULARY), "shonenkov/rudalle-utils")
    load = partial(rudalle.load, file=file, **options)
    licence = "as its page on the hub says (the code's is Apache-2.0)"
    make, usual = partial(rudalle.make, **options), "--top-k 2048 --top-p 0.995"
    return Checkpoint(make, load, {file: at} | others, licence, usual)


CHECKPOINTS = {
    "dalle-mini": _mini(dalle_mini.MINI, "_mini"),
    "dalle-mega": _mini(dalle_mini.MEGA, ""),
    "mindalle": Checkpoint(
        mindalle.make, mindalle.load, dict.fromkeys(mindalle.FILES, mindalle.ARCHIVE),
        "CC-BY-NC-SA 4.0, not for commercial use", "--top-k 256", mindalle.ARCHIVE,
    ),
    "rudalle-malevich": _rudalle("pytorch_model_v3.bin", "sberbank-ai/rudalle-Malevich"),
    "rudalle-malevich-v2": _rudalle(
        "pytorch_model_v2.bin", "sberbank-ai/rudalle-Malevich", version=2
    ),
    "rudalle-emojich": _rudalle("pytorch_model.bin", "sberbank-ai/rudalle-Emojich", version=2),
    "rudalle-surrealist": _rudalle("pytorch_model.bin", "shonenkov-AI/rudalle-xl-surrealist"),
    "rudalle-kandinsky": _rudalle(
        "pytorch_model.bin", "sberbank-ai/rudalle-Kandinsky", sizes=rudalle.KANDINSKY
    ),
    "openai-clip": _clip(openai_clip.B32, 32),
    "openai-clip-b16": _clip(openai_clip.B16, 16),
    "openai-dvae": Checkpoint(
        openai_dvae.make, openai_dvae.load,
        {f"{part}.pkl": f"https://cdn.openai.com/dall-e/{part}.pkl" for part in openai_dvae.HALVES},
        "modified MIT",
    ),
    "vqgan-f16-1024": _vqgan(vqgan.F16_1024, "8088892a516d4e3baf92"),
    "vqgan-f16-16384": _vqgan(vqgan.F16_16384, "a7530b09fed84f80a887"),
    "vqgan-gumbel-f8": _vqgan(vqgan.GUMBEL_F8, "2e5662443a6b4307b470"),
}  # fmt: skip


def _row(name: str) -> Checkpoint:
    if name not in CHECKPOINTS:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(CHECKPOINTS)}")
    return CHECKPOINTS[name]


def make(name: str, *kinds: str) -> Parts:
    """Make the models of a name without weights; with torch.device('meta'), without memory too.

    Raises ValueError for an unknown name, or where one of `kinds` is not among its parts.
    """
    parts = _row(name).make()
    if lacking := [kind for kind in kinds if getattr(parts, kind) is None]:
        raise ValueError(f"{name} has no {' and no '.join(lacking)}")
    return parts


def load(
    name: str,
    folder: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Parts:
    """Load a published model from the folder that holds its files; None fetches them.

    dtype: of the prior's weights; all else is float32.
    Raises ValueError or OSError, naming the file and the key, where a file is not what it should
    be: nothing in it is ever run.
    """
    row = _row(name)
    parts = row.load(Path(folder) if folder else fetch(name), dtype)
    return Parts(*(p.to(device) if isinstance(p, nn.Module) else p for p in parts))


def describe(name: str, dtype: torch.dtype = torch.float32, *kinds: str) -> str:
    """Say how large a model is, how much memory its weights take, and their licence.

    Errors as `make`.
    """
    with torch.device("meta"):
        parts = make(name, *kinds)
    sizes = {
        kind: sum(p.numel() for p in part.parameters())
        for kind, part in parts._asdict().items()
        if part is not None
    }
    memory = sum(n * (dtype.itemsize if kind == "prior" else 4) for kind, n in sizes.items())
    shown = ", ".join(f"{kind} {n:,}" for kind, n in sizes.items())
    usual = f" Its authors sample with {_row(name).options}." if _row(name).options else ""
    return (
        f"{name} has {sum(sizes.values()):,} parameters ({shown}), {memory / 1e9:.1f} GB of "
        f"memory; licence of the weights: {_row(name).licence}.{usual}"
    )


def fetch(name: str) -> Path:
    """Return the folder with a model's files; those it lacks come from the Hugging Face hub.

    An interrupted download goes on where it stopped, and every large file is compared with the
    hub's checksum. minDALL-E comes from its makers, as one archive that starts anew.
    Raises ValueError, saying what to do, where a file is in neither place or huggingface_hub is
    not installed, and OSError where the network or the disk refuses.
    """
    row = _row(name)
    folder = find(f"published/{name}") or places()[-1] / "published" / name
    missing = {file: at for file, at in row.files.items() if not (folder / file).is_file()}
    if not missing:
        return folder
    if row.archive:
        return _unpack(row, folder)
    for file, at in missing.items():
        if at.startswith("https://"):
            raise ValueError(f"no {file} in {folder}: get it from {at}, or use --weights FOLDER")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"no {', '.join(missing)} in {folder}: `pip install huggingface_hub` fetches them, "
            f"or get them from {', '.join(missing.values())} and use --weights FOLDER"
        ) from None
    try:
        api = huggingface_hub.HfApi()
        infos = {file: api.get_paths_info(at, [file])[0] for file, at in missing.items()}
        size = sum(info.size for info in infos.values())
        print(f"Fetching {size / 1e9:.2f} GB into {folder}; licence of the weights: {row.licence}.")
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < size:
            raise OSError(f"only {free / 1e9:.2f} GB are free")
        for file, at in missing.items():
            path = Path(huggingface_hub.hf_hub_download(at, file, local_dir=folder))
            if infos[file].lfs and digest(path) != infos[file].lfs.sha256:
                path.unlink()
                raise OSError(f"{file} does not have the hub's checksum; it was deleted")
    except Exception as error:  # the hub's own kinds of error come from several libraries
        raise OSError(f"cannot fetch {name}: {error}") from error
    return folder


def _unpack(row: Checkpoint, folder: Path) -> Path:
    """Fetch an archive, and lay what is in its one folder into ours."""
    mirror, _, file = row.archive.rpartition("/")
    size = int(requests.head(row.archive, timeout=30).headers.get("content-length", 0))
    print(f"Fetching {size / 1e9:.2f} GB into {folder}; licence of the weights: {row.licence}.")
    path = fetch_file(f"published/{file}", mirror.rpartition("/")[2], [mirror])
    with tarfile.open(path) as archive:
        members = [member for member in archive if member.isfile()]
        for member in members:
            member.name = member.name.partition("/")[2]
        archive.extractall(folder, members, filter="data")
    path.unlink()
    return folder


def save_codebook(codebook: nn.Module, folder: str | Path) -> None:
    """Write an image tokenizer as the first stage of a run: model.safetensors and config.json."""
    sizes = codebook.config
    kind = "dvae" if isinstance(sizes, DVAEConfig) else "vqgan"
    preset = get_config("12b")
    dalle = replace(preset.dalle, image_vocab=sizes.vocab_size, grid=sizes.grid)
    data = replace(preset.data, image_size=sizes.image_size)
    config = replace(preset, data=data, codebook=kind, dvae=sizes, dalle=dalle)
    save_model(folder, codebook.state_dict(), to_json(config))
