"""Read tensors that others saved without running anything in the file, and fill a model strictly.

Source: torch's restricted unpickler (`torch.load` with weights_only); for TorchScript archives
https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/docs/serialization.md.
"""

import gzip
import pickle
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minidalle.files import load_tensors

# What a checkpoint of PyTorch Lightning names beside its tensors. It becomes an inert Record.
LIGHTNING = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError,
    AttributeError, TypeError, AssertionError, ArithmeticError, OSError, zipfile.BadZipFile,
)  # fmt: skip


class Parts(NamedTuple):
    """What `generate.Pipeline` is made of; None where a published model does not bring it."""

    tokenizer: object = None
    codebook: nn.Module | None = None
    prior: nn.Module | None = None
    reranker: nn.Module | None = None


class Record:
    """Stands in for a class named in a file: holds the attributes, has no behaviour."""


class ScriptReader(pickle.Unpickler):
    """Reads the attributes of a TorchScript archive; its code is neither compiled nor run."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str):
        """Return what stands for a name in the file: a Record for each class of the archive."""
        if module.split(".")[0] == "__torch__":
            return type("Record", (Record,), {})
        if module == "torch.jit._pickle":
            return lambda value, *_: value  # lists with a type
        known = {
            "torch._utils._rebuild_tensor_v2": lambda data, start, size, stride, *_: (
                data.as_strided(size, stride, start)
            ),
            "collections.OrderedDict": OrderedDict,
            "torch.FloatStorage": torch.float32,
            "torch.HalfStorage": torch.float16,
            "torch.LongStorage": torch.int64,
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[f"{module}.{name}"]

    def persistent_load(self, key: tuple) -> Tensor:
        """Return the numbers of one storage, on the CPU; its checksum is the archive's."""
        _, dtype, name, _, _ = key
        content = self.archive.read(f"{self.root}/data/{name}")
        return torch.frombuffer(bytearray(content), dtype=dtype)


def read(path: str | Path, inert: Sequence[str]) -> object:
    """Return what a file of torch.save, safetensors or TorchScript holds; tensors on the CPU.

    inert: the classes that the file may name besides tensors; each becomes a Record.
    Raises FileNotFoundError, or ValueError where the file is damaged or names anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    try:
        if root := _script_root(path):
            with zipfile.ZipFile(path) as archive:
                return ScriptReader(archive, root).load()
        with torch.serialization.safe_globals([(type("R", (Record,), {}), n) for n in inert]):
            mmap = zipfile.is_zipfile(path)  # read when it is needed; old files are no archives
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UNREADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        reason = f"is no readable checkpoint, and was not run: {reason:.200}"
        raise ValueError(f"{path} {reason}") from error


def _script_root(path: Path) -> str:
    """The folder inside a TorchScript archive, or '' where the file is something else."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        roots = [n.removesuffix("/constants.pkl") for n in archive.namelist()]
    return next((root for root in roots if "/" not in root), "")


def read_state(
    path: str | Path, ignore: Sequence[str] = (), inert: Sequence[str] = LIGHTNING
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name; those of a Lightning file lie in 'state_dict'.

    ignore: names that start so are left out. Errors and `inert` as `read`, or ValueError where
    something else than a plain tensor has a name.
    """
    content = read(path, inert)
    if isinstance(content, Record):
        try:
            state = dict(_tensors(content))
        except (AttributeError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} holds no modules within modules: {error}") from None
    elif isinstance(content, dict):
        state = content.get("state_dict", content)
    else:
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name")
    state = {k: v for k, v in state.items() if not str(k).startswith(tuple(ignore))}
    for name, x in state.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: {name!r:.80} is the name of no tensor")
        if not isinstance(x, Tensor):
            raise ValueError(f"{path}: {name} is a {type(x).__name__}, not a tensor")
        if x.is_meta or x.is_quantized or x.is_complex() or x.layout != torch.strided:
            raise ValueError(f"{path}: {name} is no plain tensor ({x.layout}, {x.dtype})")
    return state


def _tensors(module: Record, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield what a module and those inside it hold: of TorchScript, or pickled as nn.Module is."""
    inside = vars(module)
    if "_parameters" in inside or "_modules" in inside:  # nn.Module's own bookkeeping
        parameters = inside.get("_parameters", {})
        yield from ((prefix + name, x) for name, x in parameters.items() if x is not None)
        inside = inside.get("_modules", {})
    for name, value in inside.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Record):
            yield from _tensors(value, f"{prefix}{name}.")


def fill(
    model: nn.Module, state: dict[str, Tensor], path: Path, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Give a model, which may be on the meta device, the tensors read from `path`.

    Returns it for evaluation. Raises ValueError, naming file and key, where a tensor is missing,
    has another shape, or is one too many.
    """
    for name, slot in model.state_dict().items():
        if name not in state:
            raise ValueError(f"{path} lacks {name}")
        if state[name].shape != slot.shape:
            found, want = tuple(state[name].shape), tuple(slot.shape)
            raise ValueError(f"{path}: {name} is {found}, but must be {want}")
    if extra := state.keys() - model.state_dict().keys():
        raise ValueError(f"{path} holds {min(extra)}, which is no part of this model")
    model.load_state_dict({name: x.to(dtype) for name, x in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


def to_int8(prior: nn.Module) -> nn.Module:
    """Give a prior's linear maps weights of 8 bits, a scale for each row: for a CPU. Returns it.

    By torch.ao, which warns that it will leave torch; its heir torchao gains nothing on a CPU
    (benchmarks/mini.py). Raises ValueError where torch has it no more.
    """
    try:
        from torch.ao import quantization
    except ImportError:
        raise ValueError(f"torch {torch.__version__} has no 8-bit maps; use bfloat16") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {nn.Linear: quantization.per_channel_dynamic_qconfig}
        return quantization.quantize_dynamic(prior, kinds, inplace=True)


def pick(folder: str | Path, names: Iterable[str]) -> Path:
    """Return the first file of these names that a folder holds.

    Raises FileNotFoundError, with the names, where it holds none.
    """
    names = list(names)
    for path in (Path(folder) / name for name in names):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no {' or '.join(names)} in {folder}")


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Let an error about what a file holds be a ValueError that names it: "PATH is no WHAT"."""
    try:
        yield
    except (ValueError, AttributeError, TypeError, OverflowError, EOFError, zlib.error,
            gzip.BadGzipFile) as error:  # fmt: skip
        raise ValueError(f"{path} is no {what}: {error}") from None


def read_merges(path: Path, most: int | None = None) -> list[tuple[str, str]]:
    """Read merges, gzipped or plain: a '#version' line, then 'left right' a line, best first.

    most: the first so many, else all. Raises ValueError where the file is something else.
    """
    content = path.read_bytes()
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    head, *lines = text.removesuffix("\n").split("\n")
    if "#version" not in head:
        raise ValueError(f"its first line is {head[:40]!r}, not a '#version' line")
    pairs = [tuple(line.split()) for line in lines[:most]]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"{' '.join(wrong[0])[:40]!r} is not a pair of symbols")
    return pairs
