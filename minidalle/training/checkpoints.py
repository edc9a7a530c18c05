"""The state of a run in files: weights, optimiser, averaged weights, counts; the last and the best.

Source: https://github.com/huggingface/safetensors#format.
"""

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from minidalle.config import Config, to_json
from minidalle.files import CheckpointError, load_tensors, save_model, save_tensors
from minidalle.training.identity import differences

FORMAT = "minidalle-run-1"


class Checkpoints:
    """The checkpoints of one run, step-00000500.safetensors: the last `keep` and the best.

    Each holds the weights, the optimiser's state, the averaged weights, and `meta`, a dict of
    plain values with "step" (updates done), "config" (nested), "best" ({"step", "value"} or None).
    """

    directories, ending = False, ".safetensors"  # of one process: files

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder, self.keep = Path(folder), max(keep, 1)

    def paths(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def path(self, step: int) -> Path:
        """Return the name of the checkpoint after `step` updates."""
        return self.folder / f"step-{step:08d}{self.ending}"

    def save(self, model: nn.Module, optimizer, average, meta: dict) -> Path:
        """Write one checkpoint, then delete the older ones that are neither new nor best.

        Raises OSError where it cannot be written; the ones before are then untouched.
        """
        path = self.path(meta["step"])
        tensors, scalars = pack(model, optimizer, average)
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
            refuse_changed(path, differences(meta["config"], config))
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

    def finish(self, model: nn.Module, config: Config | None, made_from: dict[str, str]) -> None:
        """Write the finished model beside the checkpoints, if its configuration is known."""
        if config is not None:
            save_model(self.folder.parent, model.state_dict(), to_json(config), made_from)

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


def refuse_changed(path: Path, changed: list[str]) -> None:
    """Raise ValueError where a checkpoint is of a run whose configuration was another."""
    if changed:
        raise ValueError(
            f"{path} belongs to a run with another configuration: {'; '.join(changed)}. "
            f"Use the old values, train into another folder, or start again with --fresh"
        )


def pack(model: nn.Module, optimizer, average) -> tuple[dict[str, Tensor], dict]:
    """All tensors of a run by name, live ones, and the optimiser's plain values by name."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.state_dict().items()}
    scalars = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                scalars[f"{name}/{key}"] = value
    return tensors, scalars


def unpack_optimizer(optimizer, model: nn.Module, values: dict) -> None:
    """Give an optimiser the state that `pack` found: tensors and plain values by parameter/key."""
    named = dict(model.named_parameters())
    for path, value in values.items():
        name, key = path.rsplit("/", 1)
        like = named[name]
        if isinstance(value, Tensor) and value.shape == like.shape:
            # Same strides as the parameter, so that foreach stays fast.
            value = torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
        elif isinstance(value, Tensor):  # the count of updates, in torch's own AdamW
            value = value.to(like.device)
        optimizer.state[like][key] = value


@torch.no_grad()
def _restore(path: Path, tensors: dict, scalars: dict, model, optimizer, average) -> None:
    """Copy a checkpoint into the live objects, once its names and shapes are known to fit."""
    parts: dict[str, dict] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    live = {"model": model.state_dict(), "average": average.state_dict()}
    for part, own in live.items():
        old, new = ({k: tuple(v.shape) for k, v in d.items()} for d in (parts[part], own))
        if changed := differences(old, new):
            raise CheckpointError(f"{path} holds another model: {'; '.join(changed[:3])}")
    for part, own in live.items():
        for name, tensor in own.items():
            tensor.copy_(parts[part][name])
    unpack_optimizer(optimizer, model, parts["optimizer"] | scalars)
