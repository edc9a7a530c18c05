"""Files that survive a crash and run no code: written aside, flushed, renamed; tensors checked.

At any moment a name holds either the old content or the new. Tensors are safetensors, everything
else is JSON, text or .npy. Published files are found on disk or fetched.

Source: https://github.com/huggingface/safetensors#format.
"""

import contextlib
import glob
import hashlib
import json
import os
import platform
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class CheckpointError(ValueError):
    """A file that is damaged, or not what it should be. The message names it."""


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file aside, flush it to the disk and rename it to `path`.

    Several processes may write the same file at once: each has a file aside of its own.
    Those of processes that were killed are deleted.
    Raises OSError, naming `path`, where the disk is full or refuses; `path` is then as it was.
    """
    path = Path(path)
    aside = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        write(aside)
        _flush(aside)
        os.replace(aside, path)
        _flush(path.parent)  # the rename itself
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # gone already if all went well
            aside.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Delete the files aside of processes of this machine that were killed while they wrote."""
    prefix = f"{path.name}.{platform.node()}-"
    for aside in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        pid = aside.name.removeprefix(prefix).removesuffix(".tmp")
        if os.name == "posix" and pid.isdecimal():  # on Windows signal 0 is Ctrl-C
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                aside.unlink(missing_ok=True)
            except OSError:  # it lives, and is not ours
                continue


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file by `write_atomically`."""
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file. Tensors that share memory are stored once for each name."""
    plain, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    metadata = metadata | {"checksum": _checksum(plain)}
    write_atomically(path, lambda aside: save_file(plain, aside, metadata))


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Return the CRC-32 of all names and bytes, in the order of the names."""
    total = 0
    for name in sorted(tensors):
        content = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(content.numpy(), zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, on the CPU, and its metadata.

    A file that holds no checksum is taken as it is.
    Raises CheckpointError, naming the file, where it is missing, damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder, not a file" if path.exists() else f"no {path}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error})") from error
    if metadata.get("checksum", found := _checksum(tensors)) != found:
        raise CheckpointError(f"{path} is damaged: its tensors are not those that were written")
    return tensors, metadata


def save_model(
    folder: str | Path,
    weights: dict[str, Tensor],
    config: str,
    made_from: dict[str, str] | None = None,
) -> None:
    """Write a finished model into `folder`: model.safetensors, and config.json from a text.

    made_from: the digests of the files of earlier stages that it was trained on, by stage.
    """
    write_text(Path(folder) / "config.json", config)
    metadata = {"format": "pt", "made_from": json.dumps(made_from or {})}
    save_tensors(Path(folder) / "model.safetensors", weights, metadata)


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, without its tensors; errors as `load_tensors`."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error})") from error


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file by `write_atomically`. Raises OSError."""

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            np.save(file, array)

    write_atomically(path, write)


def load_array(path: Path, dtype: np.dtype, mmap: bool = False) -> np.ndarray | None:
    """Return the array, or None where there is none, a broken one, or one of another type."""
    try:
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if isinstance(array, np.ndarray) and array.dtype == dtype else None


# ---------------------------------------------------------------- published files


def places() -> list[Path]:
    """Return the folders that may hold published files: MINIDALLE_DATA if set, then data/."""
    code = Path(__file__).resolve().parents[1]
    here = (code if (code / "pyproject.toml").is_file() else Path.cwd()) / "data"
    shared = os.environ.get("MINIDALLE_DATA")
    return [Path(shared), here] if shared else [here]


def find(file: str) -> Path | None:
    """Return where a file such as 'mnist/train-images-idx3-ubyte.gz' lies, or None."""
    return next((place / file for place in places() if (place / file).exists()), None)


def fetch(file: str, md5: str, mirrors: Sequence[str]) -> Path:
    """Return a published file with this checksum; fetched into data/ if it is nowhere.

    mirrors are URLs of the folder above the file, tried in turn, each twice.
    Raises OSError, saying what to do, where the checksum is wrong or no mirror gives the file.
    """
    import pooch

    # A file that is there is checked, and never replaced unasked.
    path = find(file)
    if path:
        found = pooch.file_hash(str(path), alg="md5")
        if found != md5:
            raise OSError(
                f"{path} has the checksum {found}, but the published one is {md5}; "
                "delete the file and it will be fetched again"
            )
        return path
    # pooch writes aside, checks and renames; what a broken connection left is thrown away.
    goal, failures = places()[-1] / file, []
    goal.parent.mkdir(parents=True, exist_ok=True)
    for mirror in mirrors:
        registry = {goal.name: f"md5:{md5}"}
        source = pooch.create(goal.parent, f"{mirror}/", registry=registry, retry_if_failed=1)
        try:
            return Path(source.fetch(goal.name, progressbar=sys.stderr.isatty()))
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            failures.append(f"{mirror}/{goal.name}: {error}")
    free = shutil.disk_usage(goal.parent).free / 2**20
    raise OSError(
        f"cannot fetch {file}: {'; '.join(failures)}. Put the file with the MD5 {md5} into "
        f"{goal.parent} ({free:,.0f} MiB are free), or set MINIDALLE_DATA to a folder with {file}"
    )
