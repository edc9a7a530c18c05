"""A GPU for tests on machines without one: 'cuda' tensors that in truth lie in the CPU's memory.

Every storage remembers its home. `Python` answers for the device: it turns device='cuda' into a CPU
tensor whose home is the GPU. `Kernels` sits below autograd, refuses what CUDA would refuse, and
counts the moments at which the CPU waits for the GPU. Values are right, so results can be compared.
What it can not show: whether a kernel exists, is fast, or fits the memory.

Source: torch.overrides.TorchFunctionMode, torch.utils._python_dispatch.TorchDispatchMode.
"""

from contextlib import ExitStack, contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, CPU = "cuda", "cpu"
CUDA = torch.device("cuda", 0)
MOVES = ("copy_", "_to_copy")  # from any device to any other
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")  # a GPU takes CPU indices
STRICT = ("cat", "stack")  # a CPU scalar among GPU tensors will not do
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
LEAVES = (Tensor.numpy, Tensor.__array__, Tensor.tolist)  # of a GPU tensor


def storage(t: Tensor) -> torch.UntypedStorage:
    while torch._C._functorch.is_batchedtensor(t):  # inside vmap
        t = torch._C._functorch.get_unwrapped(t)
    return t.untyped_storage()


def home(t: Tensor) -> str | None:
    return getattr(storage(t), "home", None)


def settle(tensors: object, where: str, force: bool = False) -> None:
    for t in tensors_in(tensors):
        if force or home(t) is None:
            storage(t).home = where


def tensors_in(*things: object) -> list[Tensor]:
    return [t for t in tree_leaves(things) if isinstance(t, Tensor) and not t.is_meta]


class Kernels(TorchDispatchMode):
    """What each kernel is given must live together; its results live there too."""

    def __init__(self):
        super().__init__()
        self.waits, self.tape, self.recording = 0, [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        with torch._C.DisableTorchFunction():
            given = tensors_in(args, kwargs)
            on_gpu = [t for t in given if home(t) == GPU]
            if on_gpu and name not in MOVES:
                self._check(name, [args[0]] if name in INDEXING else given)
            if on_gpu and name in WAITS:
                assert not self.recording, f"{name} while a CUDA graph is recorded"
                self.waits += 1
            result = func(*args, **kwargs)
            settle(result, GPU) if on_gpu else None
            if self.recording:
                self.tape.append((func, args, kwargs, result))
        return result

    def _check(self, name: str, given: list[Tensor]) -> None:
        strangers = [t for t in given if home(t) == CPU and (t.ndim or name in STRICT)]
        if strangers:
            shapes = [tuple(t.shape) for t in strangers]
            raise RuntimeError(f"{name}: tensors on cuda:0 and on cpu, those of shapes {shapes}")


class Python(TorchFunctionMode):
    """What torch's functions and methods say and do about devices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, given = dict(kwargs or {}), tensors_in(args, kwargs)
        settle(given, CPU)  # nobody made it a GPU tensor
        where = GPU if any(home(t) == GPU for t in given) else CPU
        if func == Tensor.device.__get__ and not args[0].is_meta:
            return CUDA if where == GPU else torch.device(CPU)
        if func == Tensor.is_cuda.__get__:
            return where == GPU
        if func in LEAVES and where == GPU:
            raise TypeError(f"can't convert cuda:0 device type tensor to numpy by {func.__name__}")
        if func in (Tensor.cpu, Tensor.cuda, Tensor.to):
            return self._move(func, args, kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            where = torch.device(kwargs["device"]).type
            kwargs["device"] = CPU
        source = kwargs.get("generator")
        if source is not None and source.device.type != where:
            raise RuntimeError(f"{func.__name__}: a generator on {source.device} for {where}")
        result = func(*args, **kwargs)
        settle(result, where)
        return result

    def _move(self, func, args: tuple, kwargs: dict) -> Tensor:
        """Tensor.to, .cpu or .cuda: always a copy where the device changes."""
        x, wish = args[0], [*args[1:], *kwargs.values()]
        target = {Tensor.cpu: CPU, Tensor.cuda: GPU}.get(func, home(x))
        for value in wish:
            if isinstance(value, Tensor):
                target = home(value)
            elif isinstance(value, str | torch.device):
                target = torch.device(value).type
        if target == "meta" or func is not Tensor.to:
            result = x.to(target) if target == "meta" else x
        else:
            as_cpu = [CPU if isinstance(v, str | torch.device) else v for v in args[1:]]
            result = x.to(*as_cpu, **kwargs | ({"device": CPU} if "device" in kwargs else {}))
        if not result.is_meta and target != home(x):
            if result.untyped_storage()._cdata == x.untyped_storage()._cdata:
                result = result.clone()
            settle(result, target, force=True)
        return result


class Generator(torch.Generator):
    """A generator that says where it belongs; the numbers are the CPU's."""

    def __new__(cls, device: str | torch.device = CPU):
        made = super().__new__(cls, CPU)
        made.belongs = torch.device(device)
        return made

    device = property(lambda self: self.belongs)


CUDA_MODULE = {
    "init": lambda: None, "default_generators": (Generator(GPU),), "current_device": lambda: 0,
    "synchronize": lambda *a: None, "is_available": lambda: True,
}  # fmt: skip


class Graph:
    """A Graph as CUDA has it: the kernels are repeated on the same memory, not the Python."""

    def __init__(self, kernels: Kernels, step, token: Tensor):
        self.token = token.clone()
        step(self.token)
        kernels.recording, kernels.tape = True, []
        try:
            self.logits = step(self.token)
        finally:
            kernels.recording, self.tape = False, kernels.tape

    @torch.no_grad()
    def __call__(self, token: Tensor) -> Tensor:
        self.token.copy_(token)
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            for func, args, kwargs, before in self.tape:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(before), tree_leaves(again), strict=True):
                    if old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                        old.copy_(new)
        return self.logits.clone()


def flex_by_its_mask(q: Tensor, k: Tensor, v: Tensor, block_mask) -> Tensor:
    """What the compiled kernel would compute, from the mask function alone."""
    i = torch.arange(q.shape[2], device=q.device)
    zero = i.new_zeros(())
    seen = block_mask.mask_mod(zero, zero, i[:, None], i[None, :])
    assert block_mask.kv_num_blocks.device == q.device
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


@contextmanager
def pretend_cuda(monkeypatch: pytest.MonkeyPatch):
    """Inside `with`, device='cuda' can be used. Yields the Kernels, for their count of waits."""
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU: nothing to pretend")
    from minidalle import dalle
    from minidalle.attention import flex

    kernels, real, engine = Kernels(), torch.autocast, torch.autograd._engine_run_backward

    def backward(*args, **kwargs):
        with Python():  # hooks and checkpointed layers ask for devices too
            return engine(*args, **kwargs)

    autocast = lambda kind, *a, **k: real(CPU if kind == GPU else kind, *a, **k)  # noqa: E731
    with monkeypatch.context() as patch, ExitStack() as modes:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "autocast", autocast)
        patch.setattr(checkpoint, "_infer_device_type", lambda *a: CPU)  # of its autocast
        patch.setitem(checkpoint._allowed_determinism_checks_to_fns, "default", lambda t: t.shape)
        patch.setattr(torch.autograd, "_engine_run_backward", backward)
        for name, value in CUDA_MODULE.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(dalle, "Graph", lambda step, token: Graph(kernels, step, token))
        patch.setattr(flex, "_compiled", lambda: flex_by_its_mask)
        modes.enter_context(kernels)
        modes.enter_context(Python())
        yield kernels
