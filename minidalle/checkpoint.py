"""Files that survive a crash and run no code: a run's state, and the finished model of a stage.

Every file is written aside, flushed to the disk and renamed, so that at any moment a name holds
either the old content or the new. Tensors are safetensors, everything else is JSON.

Source: https://github.com/huggingface/safetensors#format.
"""

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minidalle.config import Config
from minidalle.config_json import config_from_json, config_to_json, differences

FORMAT = "minidalle-run-1"


class CheckpointError(ValueError):
    """A file that is damaged, or not what it should be. The message names it."""


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file aside, flush it to the disk and rename it to `path`.

    Raises OSError, naming `path`, where the disk is full or refuses; `path` is then as it was.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        _flush(aside)
        os.replace(aside, path)
        _flush(path.parent)  # the rename itself
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # on a read-only disk nothing was written
            aside.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file. Tensors that share memory are stored once for each name."""
    plain, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    write_atomically(path, lambda aside: save_file(plain, aside, metadata))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, on the CPU, and its metadata.

    Raises CheckpointError, naming the file, where it is missing, damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder, not a file" if path.exists() else f"no {path}")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error})") from error


# ---------------------------------------------------------------- the finished model of a stage


def save_model(folder: str | Path, model_state: dict[str, Tensor], config: Config) -> None:
    """Write model.safetensors and config.json into `folder`."""
    folder, text = Path(folder), config_to_json(config)
    write_atomically(folder / "config.json", lambda aside: aside.write_text(text, encoding="utf-8"))
    save_tensors(folder / "model.safetensors", model_state, {"format": "pt"})


def load_model(
    folder: str | Path, like: Config | None = None, sections: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], Config]:
    """Read what `save_model` wrote.

    Returns the state dict, on the CPU, and the configuration of the run that made it.
    Raises FileNotFoundError where nothing was saved; CheckpointError where a file is damaged;
    ValueError, naming the fields, where the named sections differ from those of `like`.
    """
    folder = Path(folder)
    for name in ("model.safetensors", "config.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"no {name} in {folder}: train this stage first")
    try:
        config = config_from_json((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    if like is not None:
        old, new = (_sections(c, sections) for c in (config, like))
        if changed := differences(old, new):
            raise ValueError(f"{folder} holds a model of another size: {'; '.join(changed)}")
    return load_tensors(folder / "model.safetensors")[0], config


def _sections(config: Config, names: tuple[str, ...]) -> dict:
    return {name: dataclasses.asdict(getattr(config, name)) for name in names}


# ---------------------------------------------------------------- the state of a run


class Checkpoints:
    """The checkpoints of one run, step-00000500.safetensors: the last `keep` and the best.

    Each holds the weights, the optimiser's state, the averaged weights, and `meta`, a dict of
    plain values with "step" (updates done), "config" (nested), "best" ({"step", "value"} or None).
    """

    directories = False  # of one process: files

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder, self.keep = Path(folder), max(keep, 1)

    def paths(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def path(self, step: int) -> Path:
        """Return the name of the checkpoint after `step` updates."""
        return self.folder / f"step-{step:08d}.safetensors"

    def save(self, model: nn.Module, optimizer, average, meta: dict) -> Path:
        """Write one checkpoint, then delete the older ones that are neither new nor best.

        Raises OSError where it cannot be written; the ones before are then untouched.
        """
        path = self.path(meta["step"])
        moments, scalars = _pack_optimizer(optimizer, model)
        tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in average.state_dict().items()}
        tensors |= {f"optimizer/{k}": v for k, v in moments.items()}
        texts = {"format": FORMAT, "meta": json.dumps(meta), "optimizer": json.dumps(scalars)}
        save_tensors(path, tensors, texts)
        best = self.path(meta["best"]["step"]) if meta["best"] else None
        for old in [p for p in self.paths() if p <= path][: -self.keep]:
            if old != best:
                old.unlink(missing_ok=True)
        return path

    def load_latest(self, model: nn.Module, optimizer, average, config: dict) -> dict | None:
        """Load the newest sound checkpoint in place; a damaged one is named in a warning.

        Returns its meta, or None where there is no checkpoint at all.
        Raises CheckpointError where all are damaged, ValueError where `config` is not the one
        the run was started with, naming the fields, or where several processes saved it.
        """
        self.refuse_others()
        for aside in self.folder.glob("*.tmp"):  # a process was killed while saving
            aside.unlink()
        problems = []
        for path in reversed(self.paths()):
            try:
                tensors, meta, scalars = self.read(path)
            except CheckpointError as error:
                problems.append(str(error))
                warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=2)
                continue
            if changed := differences(meta["config"], config):
                raise ValueError(
                    f"{path} belongs to a run with another configuration: {'; '.join(changed)}. "
                    f"Use the old values, or train into another folder"
                )
            _restore(path, tensors, scalars, model, optimizer, average)
            return meta
        if problems:
            raise CheckpointError("; ".join(problems) + ". Delete them to start afresh")
        return None

    def refuse_others(self) -> None:
        """Raise ValueError where the folder holds checkpoints of a run of the other kind."""
        for path in self.folder.glob("step-*"):
            if path.is_dir() != self.directories:
                how = "without" if self.directories else "with"
                raise ValueError(
                    f"{path} is of a run {how} torchrun: go on {how} it (one process will do), or "
                    f"start again with --fresh"
                )

    def set_aside(self) -> None:
        """Rename the folder, if it holds checkpoints, so that a run can start afresh."""
        if any(self.folder.glob("step-*")):
            number = 1
            while (other := self.folder.with_name(f"{self.folder.name}-old-{number}")).exists():
                number += 1
            self.folder.rename(other)

    def finish(self, model: nn.Module, config: Config | None) -> None:
        """Write the finished model beside the checkpoints, if its configuration is known."""
        if config is not None:
            save_model(self.folder.parent, model.state_dict(), config)

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict, dict]:
        """Return the tensors, meta and optimiser's plain values of one checkpoint.

        Raises CheckpointError where the file is damaged or was not made by a run.
        """
        tensors, texts = load_tensors(path)
        if texts.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a checkpoint of a minidalle run")
        try:
            return tensors, json.loads(texts["meta"]), json.loads(texts["optimizer"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path} has a damaged header ({error})") from error


def _pack_optimizer(optimizer, model: nn.Module) -> tuple[dict[str, Tensor], dict]:
    """Split an optimiser's state into tensors and plain values, both by 'parameter/key'."""
    tensors, scalars = {}, {}
    names = _parameter_names(optimizer, model)
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            home = tensors if isinstance(value, Tensor) else scalars
            home[f"{names[index]}/{key}"] = value
    return tensors, scalars


def _unpack_optimizer(optimizer, model: nn.Module, values: dict) -> None:
    """Undo `_pack_optimizer`: `values` holds tensors and plain values by 'parameter/key'."""
    named = dict(model.named_parameters())
    index_of = {name: i for i, name in enumerate(_parameter_names(optimizer, model))}
    state: dict[int, dict] = {}
    for path, value in values.items():
        name, key = path.rsplit("/", 1)
        if isinstance(value, Tensor) and value.shape == named[name].shape:
            like = named[name]  # same strides as the parameter, so that foreach stays fast
            value = torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(index_of[name], {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameter_names(optimizer, model: nn.Module) -> list[str]:
    """Return the model's names of an optimiser's parameters, in the optimiser's order."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


@torch.no_grad()
def _restore(path: Path, tensors: dict, scalars: dict, model, optimizer, average) -> None:
    """Copy a checkpoint into the live objects, once its names and shapes are known to fit."""
    parts: dict[str, dict] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    homes = {"model": model.state_dict(), "average": average.state_dict()}
    for part, live in homes.items():
        old, new = ({k: tuple(v.shape) for k, v in d.items()} for d in (parts[part], live))
        if changed := differences(old, new):
            raise CheckpointError(f"{path} holds another model: {'; '.join(changed[:3])}")
    for part, live in homes.items():
        for name, tensor in live.items():
            tensor.copy_(parts[part][name])
    _unpack_optimizer(optimizer, model, parts["optimizer"] | scalars)
