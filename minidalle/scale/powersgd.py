"""How do gradients travel between machines cheaply? As two thin matrices instead of one large one.

R rank of the whole matrix, r = R / G rank of one process's slice; D width; G processes per node.
Inside a node gradients are reduce-scattered in full. Then each process compresses its slice
M (n, m) to P (n, r) and Q (m, r), and only these cross the network; what is lost is kept and
added to the next gradient (error feedback). Embeddings, heads, gains and biases travel whole.
float16 gradients are divided by their scales before they are compressed. A slice that is not
finite leaves no trace in what is kept; its update is skipped. The slices that were finite keep what
compression lost of them, as in the paper.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.5, appendix E, tables 1 and 2; Vogels et
al. 2019, arXiv:1905.13727. The arithmetic of a step is torch's own powerSGD_hook.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from minidalle.dalle import DALLE
from minidalle.scale.precision import ResblockScales
from minidalle.scale.sharding import units

STORES = ("error_dict", "p_memory_dict", "q_memory_dict")  # where torch's state keeps tensors
PAPER_RANKS = {1920: 512, 2688: 640, 3968: 896}  # width -> R (table 1)


def paper_rank(width: int) -> int:
    """Return R for a model of this width: table 1's, else a quarter of the width.

    Table 1 gives 0.27, 0.24 and 0.23 of the width; a quarter is its middle, in steps of 16.
    """
    return PAPER_RANKS.get(width, max(16, round(width / 64) * 16))


def saving(rank: int, width: int) -> float:
    """Share of the blocks' gradient bytes saved with 8 processes per node, 1 - 5R/(8D)."""
    return 1 - 5 * rank / (8 * width)


class _Slice:
    """One block's flat gradient slice, in the form that torch's hook for DDP expects."""

    def __init__(self, flat: Tensor, layout: list[tuple[int, torch.Size]]):
        self.flat, self.layout = flat, layout

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        """Views of the flat tensor, one per parameter."""
        views, at = [], 0
        for room, shape in self.layout:
            views.append(self.flat[at : at + shape.numel()].view(shape))
            at += room
        return views


def rooms(unit: FSDPModule, parts: int) -> list[tuple[str, int]]:
    """Each parameter's name and elements, with padding, in the order of FSDP2's flat gradient."""
    found = []
    for name, p in unit.named_parameters():
        rows = p.shape[p.placements[-1].dim]
        found.append((name, p.numel() // rows * -(-rows // parts)))  # rows rounded up
    return found


def slice_layout(unit: FSDPModule, parts: int) -> list[tuple[int, torch.Size]]:
    """What lies in FSDP2's flat gradient, in order: (elements with padding, shape) of each matrix.

    Queries, keys and values are stored as one matrix (3D, D); the paper compresses three.
    """
    layout = []
    for p, (_, room) in zip(unit.parameters(), rooms(unit, parts), strict=True):
        shape = p.to_local().shape
        three = p.ndim == 2 and p.shape[0] == 3 * p.shape[1] and p.shape[0] % (3 * parts) == 0
        if three:
            layout += [(room // 3, torch.Size((shape[0] // 3, shape[1])))] * 3
        else:
            layout.append((room, shape))
    return layout


class _Hook:
    """What a block does with its gradient slice after the reduce-scatter inside the node.

    Parts of an accumulated batch are added up here; only the sum of all travels.
    """

    def __init__(self, send: Callable[[Tensor], None], is_last: Callable[[], bool]):
        self.send, self.is_last = send, is_last
        self.held: Tensor | None = None

    def __call__(self, flat: Tensor) -> None:
        if self.held is not None:
            flat += self.held
        self.held = None
        if self.is_last():
            self.send(flat)
        else:
            self.held = flat.clone()
            flat.zero_()  # FSDP2 adds this to the gradient; what is held comes with the last part


def _send_whole(group: dist.ProcessGroup) -> Callable[[Tensor], None]:
    def send(flat: Tensor) -> None:
        dist.all_reduce(flat, group=group)
        flat.div_(dist.get_world_size(group))

    return send


def _send_thin(
    unit: FSDPModule, parts: int, state: PowerSGDState, unscale: Callable | None
) -> Callable[[Tensor], None]:
    layout, names = slice_layout(unit, parts), rooms(unit, parts)

    def send(flat: Tensor) -> None:
        assert flat.numel() == sum(room for room, _ in layout), "FSDP2's flat layout changed"
        if unscale is not None:
            unscale(flat, names)
        error, *thin = (dict(getattr(state, kind)) for kind in STORES)
        thin = [{i: kept.clone() for i, kept in kind.items()} for kind in thin]  # written in place
        # Waiting keeps the order of collectives the same on every process.
        powerSGD_hook(state, _Slice(flat, layout)).wait()
        if not flat.isfinite().all():  # fit will skip this update: it must leave no trace here
            state.error_dict, (state.p_memory_dict, state.q_memory_dict) = error, thin

    return send


class Compression:
    """The states of PowerSGD of all blocks on this process, so that a run can be resumed."""

    def __init__(self, states: list[PowerSGDState], device: str):
        self.states, self.device = states, device

    def state_dict(self) -> dict[str, Tensor]:
        """Return error buffers, P and Q by block, and the number of updates so far."""
        tensors = {}
        for i, state in enumerate(self.states):
            tensors[f"{i}/updates"] = torch.tensor(state.iter)
            for kind in STORES:
                found = getattr(state, kind).get(0)
                if found is not None:
                    tensors[f"{i}/{kind}"] = found
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        for path, value in tensors.items():
            i, kind = path.split("/")
            if kind == "updates":
                self.states[int(i)].iter = int(value)
            else:
                getattr(self.states[int(i)], kind)[0] = value.to(self.device)


def compress(
    model: DALLE,
    mesh: DeviceMesh,
    rank: int = 0,
    is_last: Callable[[], bool] = lambda: True,
    start: int = 10,
    feedback: bool = True,
    scales: ResblockScales | None = None,
) -> Compression:
    """Average the gradients of `model`, sharded on mesh['shard'], over mesh['replicate'].

    rank: R of the whole matrix; a slice gets R / G, at least 1. 0 sends everything uncompressed.
    is_last: does the running backward pass end its update? start: updates sent whole first (at
    least 2). feedback: keep what compression loses. scales: of float16, divided out of each slice
    before it is sent. Returns the states of all blocks.
    """
    group, parts = mesh["replicate"].get_group(), mesh["shard"].size()
    for unit in units(model):
        unit.set_all_reduce_hook(_Hook(_send_whole(group), is_last))
    states = []
    if scales is not None:
        scales.by_slice = rank > 0
    for number, block in enumerate(model.transformer.blocks if rank else ()):
        state = PowerSGDState(
            group,
            matrix_approximation_rank=max(1, rank // parts),
            start_powerSGD_iter=max(2, start),
            min_compression_rate=1.01,
            use_error_feedback=feedback,
            orthogonalization_epsilon=1e-8,
        )
        unscale = None if scales is None else partial(scales.unscale_slice, number)
        block.set_all_reduce_hook(_Hook(_send_thin(block, parts, state, unscale), is_last))
        states.append(state)
    return Compression(states, mesh.device_type)


class CountedBytes:
    """Count the bytes that this process gives to all_reduce in one group, while inside `with`.

    seen.total is the sum; the count is of payload, not of what an algorithm makes of it.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.total = group, 0

    def __enter__(self):
        self.real = dist.all_reduce

        def counted(tensor, *args, **kwargs):
            if kwargs.get("group") is self.group:
                self.total += tensor.numel() * tensor.element_size()
            return self.real(tensor, *args, **kwargs)

        dist.all_reduce = counted
        return self

    def __exit__(self, *error):
        dist.all_reduce = self.real
