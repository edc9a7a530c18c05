"""How do many processes save one run, so that any number of processes can go on with it?

Each process writes its own slices into the directory step-00000500, and the last file to appear
is .metadata, which says what lies where: a directory with it is complete, one without it is the
trace of a crash. Loading reads whatever slices the processes of then need. `consolidate` makes
one model.safetensors, as a run on a laptop leaves it.

Source: torch.distributed.checkpoint.
"""

import json
import shutil
import sys
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from minidalle.config import Config, from_json, to_json
from minidalle.files import CheckpointError, save_model, write_text
from minidalle.scale.sharding import gathered
from minidalle.training.checkpoints import Checkpoints, pack, refuse_changed, unpack_optimizer
from minidalle.training.identity import differences

META, COMPLETE = "meta.json", ".metadata"


class ShardedCheckpoints(Checkpoints):
    """The checkpoints of a run of several processes; for `fit`'s argument of that name.

    A save returns as soon as the tensors are copied to the CPU's memory; the files are written
    behind training's back, by a process group of their own (on the trainer's group its
    collectives would mix with those of the backward pass).
    config: kept beside each checkpoint. local: objects whose state belongs to one process, such as
    PowerSGD's error buffers; restored when the number of processes is the same, else started anew.
    """

    directories, ending = True, ""

    def __init__(
        self, folder: str | Path, keep: int, config: Config, local: dict[str, object] | None = None
    ):
        super().__init__(folder, keep)
        self.config = config
        self.group = dist.new_group(backend="gloo")
        self.pending: Future | None = None
        self.local = local or {}

    def paths(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(p.parent for p in self.folder.glob(f"step-*/{COMPLETE}"))

    def save(self, model: nn.Module, optimizer, average, meta: dict) -> Path:
        """Begin to write one checkpoint, after the one before is safely on the disk.

        Raises OSError where that one could not be written.
        """
        self.wait()
        path = self.path(meta["step"])
        tensors, scalars = pack(model, optimizer, average)
        for name, part in self.local.items():
            tensors |= {f"{_here()}{name}/{key}": x for key, x in part.state_dict().items()}
        text = json.dumps({"meta": meta, "optimizer": scalars})
        self._lead(lambda: self._prepare(path, meta.get("best"), text))
        self.pending = dcp.async_save(tensors, checkpoint_id=path, process_group=self.group)
        return path

    def wait(self) -> None:
        """Return when no save is in flight. Raises OSError where it failed, on every process."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        try:
            pending.result()
        except (CheckpointException, OSError, RuntimeError) as error:
            raise OSError(None, f"cannot write a checkpoint in {self.folder}: {error}") from error

    def load_latest(self, model: nn.Module, optimizer, average, config: dict) -> dict | None:
        """Load the newest complete checkpoint in place; incomplete ones are removed.

        Returns its meta, or None where there is none. Raises ValueError where `config` is not the
        one the run was started with, CheckpointError where the checkpoint does not fit.
        """
        self.refuse_others()
        self._lead(self._sweep)
        step = int(self.paths()[-1].name.removeprefix("step-")) if self.paths() else -1
        step = self._from_first(step)  # all processes must agree, also on a slow file system
        if step < 0:
            return None
        path = self.path(step)
        saved = json.loads((path / META).read_text(encoding="utf-8"))
        refuse_changed(path, self._from_first(differences(saved["meta"]["config"], config)))
        # Live tensors of the right sizes, which the files are read into.
        known = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        _make_moments(model, optimizer, known, saved["optimizer"])
        tensors, _ = pack(model, optimizer, average)
        tensors |= {k: _empty(v) for k, v in known.items() if k.startswith(_here())}
        try:
            dcp.load(tensors, checkpoint_id=path)
        except (CheckpointException, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this run: {error}") from error
        for name, part in self.local.items():
            prefix = f"{_here()}{name}/"
            found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if found:
                part.load_state_dict(found)
        return saved["meta"]

    def set_aside(self) -> None:
        """Rename the folder, if it holds checkpoints, so that a run can start afresh."""
        self._lead(super().set_aside)

    def finish(self, model: nn.Module, config: Config | None, made_from: dict[str, str]) -> None:
        """Gather the finished model and write model.safetensors and config.json, whole."""
        self.wait()
        state = gathered(model, "cpu")
        if config is not None:
            self._lead(lambda: save_model(self.folder.parent, state, to_json(config), made_from))

    def _lead(self, action) -> None:
        """Let the first process do it; the others wait. Its OSError is raised by all of them."""
        error = None
        if dist.get_rank() == 0:
            try:
                action()
            except OSError as problem:
                error = str(problem)
        error = self._from_first(error)
        if error is not None:
            raise OSError(None, error)

    def _from_first(self, value: object) -> object:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def _prepare(self, path: Path, best: dict | None, text: str) -> None:
        """Make room: an empty directory for the new checkpoint, and none too many of the old."""
        keep = {p.name for p in self.paths()[-self.keep :]}
        if best is not None:
            keep.add(self.path(best["step"]).name)
        for old in self.folder.glob("step-*"):
            if old.name not in keep or old == path:
                _remove(old)
        path.mkdir(parents=True)
        for name, content in ((META, text), ("config.json", to_json(self.config))):
            write_text(path / name, content)

    def _sweep(self) -> None:
        for torn in self.folder.glob("step-*"):
            if not (torn / COMPLETE).exists():
                _remove(torn)


def _here() -> str:
    return f"process/{dist.get_rank()} of {dist.get_world_size()}/"


def _empty(entry: TensorStorageMetadata) -> Tensor:
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _remove(directory: Path) -> None:
    """Delete a checkpoint; .metadata first, so that half a deletion is no checkpoint."""
    (directory / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


@torch.no_grad()
def _make_moments(model: nn.Module, optimizer, known: dict, scalars: dict) -> None:
    """Give a fresh optimiser the state that a checkpoint will be read into."""
    named, values = dict(model.named_parameters()), dict(scalars)
    for path, entry in known.items():
        if path.startswith("optimizer/") and isinstance(entry, TensorStorageMetadata):
            path = path.removeprefix("optimizer/")
            parameter, values[path] = named[path.rpartition("/")[0]], _empty(entry)
            if entry.size == parameter.shape:  # sliced as it is
                values[path] = torch.zeros_like(parameter, dtype=entry.properties.dtype)
    unpack_optimizer(optimizer, model, values)


def consolidate(checkpoint: str | Path, folder: str | Path, config: Config) -> None:
    """Turn one sharded checkpoint into folder/model.safetensors and config.json.

    Needs one process, no GPU and memory for the averaged weights, which are the ones written.
    Raises CheckpointError where the checkpoint is not complete.
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / COMPLETE).is_file():
        raise CheckpointError(f"{checkpoint} is not a complete sharded checkpoint: no {COMPLETE}")
    known = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors = {name: _empty(entry) for name, entry in known.items() if name.startswith("average/")}
    dcp.load(tensors, checkpoint_id=checkpoint, no_dist=True)
    weights = {k.removeprefix("average/"): v for k, v in tensors.items()}
    meta = json.loads((checkpoint / META).read_text(encoding="utf-8"))["meta"]
    save_model(folder, weights, to_json(config), meta["config"].get("made_from"))


def main(arguments: list[str]) -> None:
    """python -m minidalle.scale.checkpoints runs/12b/dalle OUT: its newest checkpoint, whole."""
    if len(arguments) != 2:
        raise SystemExit("usage: python -m minidalle.scale.checkpoints runs/<preset>/dalle OUT")
    folder = Path(arguments[0]) / "checkpoints"
    complete = sorted(p.parent for p in folder.glob(f"step-*/{COMPLETE}"))
    if not complete:
        raise SystemExit(f"no complete sharded checkpoint in {folder}")
    config = from_json((complete[-1] / "config.json").read_text(encoding="utf-8"))
    consolidate(complete[-1], arguments[1], config)
    print(f"wrote {Path(arguments[1]) / 'model.safetensors'} from {complete[-1]}")


if __name__ == "__main__":
    main(sys.argv[1:])
