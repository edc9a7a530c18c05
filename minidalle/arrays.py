"""Arrays kept in files beside the data: whole, or as if they were not there.

Many processes may write the same one at once, so each writes a file of its own and renames it.
"""

import contextlib
import os
from pathlib import Path

import numpy as np


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file aside, flush it to the disk and rename it. Raises OSError."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        with contextlib.suppress(OSError):  # gone already if all went well
            aside.unlink()


def load_array(path: Path, dtype: np.dtype, mmap: bool = False) -> np.ndarray | None:
    """Return the array, or None where there is none, a broken one, or one of another type."""
    try:
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if isinstance(array, np.ndarray) and array.dtype == dtype else None
