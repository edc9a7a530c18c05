"""What a finished stage left in the folder of a run: found, read, and known to be right."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from minidalle.config import PRESETS, Config, from_json
from minidalle.files import CheckpointError, digest, load_tensors, read_metadata
from minidalle.training.identity import FREE, differences


class MissingStage(ValueError):
    """A stage needs the product of an earlier one; the message names the command to run."""


def product(stage: str) -> str:
    """The file that a finished stage leaves in its folder."""
    return "tokenizer.json" if stage == "tokenizer" else "model.safetensors"


def digests(run: str | Path, stages: Iterable[str]) -> dict[str, str]:
    """Return the digests of what those stages made that are there, by stage."""
    paths = {name: Path(run) / name / product(name) for name in stages}
    return {name: digest(path) for name, path in paths.items() if path.is_file()}


def check_made_from(run: str | Path, stage: str, version: dict[str, str] | None = None) -> None:
    """Raise MissingStage where what a finished stage was made from has been made anew since.

    version: that of the data, as `data.version`; ValueError where it was another. Stages whose
    earlier ones are not there, or that do not say what they were made from, pass.
    """
    path = Path(run) / stage / product(stage)
    if stage == "tokenizer":
        return
    said = read_metadata(path).get("made_from", "{}")
    try:
        made_from = dict(json.loads(said))
    except (ValueError, TypeError):
        raise CheckpointError(f"{path} was made from {said[:80]!r}, which names no stage") from None
    for name, value in (version or {}).items():
        if (old := made_from.get(name, "an older one")) != value:
            raise ValueError(
                f"the {stage} in {run} learned from another world: {old}; now it is {value}. "
                f"Train into another folder with --run, or again with --fresh"
            )
    now = digests(run, made_from)
    if stale := [name for name, value in now.items() if made_from[name] != value]:
        raise MissingStage(
            f"the {stage} in {run} is stale: {' and '.join(stale)} was made anew since. Train "
            f"it again: minidalle {stage} {_where(Path(run))} --fresh"
        )


def _where(run: Path) -> str:
    return f"--preset {run.name}" if run.name in PRESETS else f"--run {run}"


def read_model(folder: str | Path) -> tuple[dict[str, Tensor], Config]:
    """Return the weights of a finished stage, on the CPU, and the configuration that made it.

    Raises FileNotFoundError where nothing was saved, CheckpointError where a file is damaged.
    """
    folder = Path(folder)
    for name in ("model.safetensors", "config.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"no {name} in {folder}: train this stage first")
    try:
        config = from_json((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    return load_tensors(folder / "model.safetensors")[0], config


def find_product(run: str | Path, stage: str) -> Path:
    """Return the file that a finished stage of a run left.

    Raises MissingStage, with the command to run, where it is not there or stale.
    """
    path = Path(run) / stage / product(stage)
    if not path.is_file():
        command = f"minidalle {stage} {_where(Path(run))}"
        raise MissingStage(f"no trained {stage} in {run}: train it first with `{command}`")
    check_made_from(run, stage)
    return path


def made_alike(folder: Path, config: Config, sections: tuple[str, ...]) -> bool:
    """Say whether a finished stage's configuration is known; ValueError where it differs."""
    if not (folder / "config.json").is_file():
        return False
    old = dataclasses.asdict(from_json((folder / "config.json").read_text(encoding="utf-8")))
    old, new = ({name: c[name] for name in sections} for c in (old, dataclasses.asdict(config)))
    free = FREE - {"steps"}
    changed = [d for d in differences(old, new) if d.split()[0].split(".")[-1] not in free]
    if changed:
        raise ValueError(
            f"{folder} holds a finished {folder.name} of another configuration: "
            f"{'; '.join(changed)}. Train into another folder with --run, or again with --fresh"
        )
    return True


def put_weights(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Put the weights of a finished stage into its model. Raises CheckpointError, naming it."""
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{folder}: {bad[0]} is not finite; train the stage again")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:200]
        raise CheckpointError(f"{folder}: weights unlike config.json: {reason}") from None
