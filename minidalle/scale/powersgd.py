"""How do gradients travel between machines cheaply? As two thin matrices instead of one large one.

R rank of the whole matrix, r = R / G rank of one process's slice; G processes per node.
Inside a node gradients are reduce-scattered in full. Then each process compresses its slice
M (n, m) to P (n, r) and Q (m, r), and only these cross the network; what is lost is kept and
added to the next gradient (error feedback). Embeddings, heads, gains and biases travel whole.
float16 gradients are divided by their scales before they are compressed. A slice that is not
finite leaves no trace in what is kept; its update is skipped. The slices that were finite keep what
compression lost of them, as in the paper.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.5, appendix E, tables 1 and 2; Vogels et
al. 2019, arXiv:1905.13727 (warm start).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from minidalle.dalle import DALLE
from minidalle.scale.precision import ResblockScales
from minidalle.scale.sharding import average, units

PAPER_RANKS = {1920: 512, 2688: 640, 3968: 896}  # width -> R (table 1)
SOURCES = ("warm", "fixed")  # of Q


def paper_rank(width: int) -> int:
    """Return R for a model of this width: table 1's, else a quarter of the width.

    Table 1 gives 0.27, 0.24 and 0.23 of the width; a quarter is its middle, in steps of 16.
    """
    return PAPER_RANKS.get(width, max(16, round(width / 64) * 16))


def saving(rank: int, width: int) -> float:
    """Share of the blocks' gradient bytes saved with 8 processes per node, 1 - 5R/(8D)."""
    return 1 - 5 * rank / (8 * width)


def slice_layout(unit: FSDPModule, parts: int) -> list[tuple[str, int, torch.Size]]:
    """What lies in FSDP2's flat gradient, in order: name, elements with padding, shape."""
    found = []
    for name, p in unit.named_parameters():
        rows = p.shape[p.placements[-1].dim]
        padded = p.numel() // rows * -(-rows // parts)  # rows rounded up
        found.append((name, padded, p.to_local().shape))
    return found


def to_169(x: Tensor) -> Tensor:
    """float32 -> sign, 6 bits of exponent, 9 of significand, in an int16 of the shape of x.

    Rounds to the nearest; what is too large becomes the largest, just under 16, and what is below
    2**-59 becomes 0. No code is kept for Inf and NaN (our reading of appendix E.2).
    """
    bits = x.contiguous().view(torch.int32)
    size = (bits & 0x7FFFFFFF) + 0x1FFF + (bits >> 14 & 1)  # ties to even
    size = (size >> 14) - (67 << 9)  # the exponent counts from -60, in float32 from -127
    size = torch.where(size < 1 << 9, 0, size.clamp(max=0x7FFF))
    return (size - (bits < 0).int() * 0x8000).short()


def from_169(x: Tensor) -> Tensor:
    """Undo `to_169`, exactly."""
    size = x.int() & 0x7FFF
    value = torch.where(size == 0, 0, (size << 14) + (67 << 23)).view(torch.float32)
    return torch.where(x < 0, -value, value)


class Compressor:
    """Averages one block's gradient slice over the nodes, its matrices as thin ones.

    layout: see `slice_layout`. rank: r of the slice. seed: of Q, the same on all nodes. For the
    rest see `compress`.
    """

    def __init__(
        self,
        layout: list[tuple[str, int, torch.Size]],
        group: dist.ProcessGroup,
        rank: int,
        seed: int = 0,
        whole: int = 0,
        q: str = "warm",
        short_errors: bool = False,
    ):
        self.layout, self.group, self.rank, self.seed = layout, group, rank, seed
        self.whole, self.source, self.short, self.updates = whole, q, short_errors, 0
        self.error: Tensor | None = None  # as flat as the gradient; int16 where short
        self.q: list[Tensor] = []  # (m, r) of each matrix
        self.prepare: Callable[[Tensor], None] | None = None  # called with each slice first

    def __call__(self, flat: Tensor) -> None:
        """Replace a flat gradient slice by its average."""
        self.updates += 1
        if self.prepare is not None:
            self.prepare(flat)
        if self.updates <= self.whole:
            flat.copy_(average([flat], self.group)[0])
            return
        # 1. Add what was lost before to what comes now.
        matrices, vectors = self._views(flat)
        error = torch.zeros_like(flat)
        if self.error is not None:
            error = from_169(self.error) if self.short else self.error.clone()
        errors, _ = self._views(error)
        torch._foreach_add_(matrices, errors)
        torch._foreach_copy_(errors, matrices)
        # 2. P (n, r): what the matrices make of Q, with orthonormal columns.
        if not self.q:
            self.q = self._draw(matrices)
        p = average([m @ q for m, q in zip(matrices, self.q, strict=True)], self.group)
        p = [torch.linalg.qr(x + 1e-6 * torch.eye(*x.shape, device=x.device)).Q for x in p]
        # 3. Q (m, r): what the matrices have in the directions of P.
        q = average([m.T @ x for m, x in zip(matrices, p, strict=True)], self.group)
        torch._foreach_copy_(matrices, [x @ y.T for x, y in zip(p, q, strict=True)])
        torch._foreach_copy_(vectors, average(vectors, self.group))
        # 4. Keep what is lost; but of a gradient that is not finite fit skips the update.
        if flat.isfinite().all():
            torch._foreach_sub_(errors, matrices)
            self.error = to_169(error) if self.short else error
            self.q = q if self.source == "warm" else self.q

    def _views(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Views of the matrices' and of the vectors' slices.

        Queries, keys and values are stored as one matrix; the paper compresses three.
        """
        matrices, vectors = [], []
        pieces = flat.split([padded for _, padded, _ in self.layout])
        for piece, (name, _, shape) in zip(pieces, self.layout, strict=True):
            view = piece[: shape.numel()].view(shape)
            if view.ndim < 2:
                vectors.append(view)
            else:
                three = name.endswith("qkv.weight") and len(view) % 3 == 0
                matrices += view.chunk(3) if three else [view]
        return matrices, vectors

    def _draw(self, matrices: list[Tensor]) -> list[Tensor]:
        """Random Q with orthonormal columns."""
        g = torch.Generator().manual_seed(self.seed * 1_000_003)
        sizes = [(m.shape[1], min(self.rank, *m.shape)) for m in matrices]
        drawn = [torch.linalg.qr(torch.randn(size, generator=g)).Q for size in sizes]
        return [q.to(matrices[0].device) for q in drawn]


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


class Compression:
    """The compressors of all blocks on this process, so that a run can be resumed."""

    def __init__(self, blocks: list[Compressor], device: str):
        self.blocks, self.device = blocks, device

    def state_dict(self) -> dict[str, Tensor]:
        """Return by block the number of updates so far, the error and each Q."""
        tensors = {}
        for i, block in enumerate(self.blocks):
            tensors[f"{i}/updates"] = torch.tensor(block.updates)
            if block.error is not None:
                tensors[f"{i}/error"] = block.error
            tensors |= {f"{i}/q/{k}": q for k, q in enumerate(block.q)}
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        for i, block in enumerate(self.blocks):
            block.updates = int(tensors[f"{i}/updates"])
            n = sum(name.startswith(f"{i}/q/") for name in tensors)
            block.q = [tensors[f"{i}/q/{k}"].to(self.device) for k in range(n)]
            if f"{i}/error" in tensors:
                block.error = tensors[f"{i}/error"].to(self.device)


def compress(
    model: DALLE,
    mesh: DeviceMesh,
    rank: int = 0,
    is_last: Callable[[], bool] = lambda: True,
    whole: int = 10,
    q: str = "warm",
    short_errors: bool = False,
    scales: ResblockScales | None = None,
) -> Compression:
    """Average the gradients of `model`, sharded on mesh['shard'], over mesh['replicate'].

    rank: R of the whole matrix; a slice gets R / G, at least 1. 0 sends everything uncompressed.
    is_last: does the running backward pass end its update? whole: updates sent whole first.
    q: where each update's Q comes from: 'warm' goes on with the last one, 'fixed' is drawn once
    for the run (the paper's). short_errors: keep what is lost in 16 bits (the paper's 1-6-9).
    scales: of float16, divided out of each slice before it is sent. Returns what the blocks keep.
    """
    assert q in SOURCES
    group, parts = mesh["replicate"].get_group(), mesh["shard"].size()
    for unit in units(model):
        unit.set_all_reduce_hook(_Hook(lambda flat: flat.copy_(average([flat], group)[0]), is_last))
    if scales is not None:
        scales.by_slice = rank > 0
    compressors = []
    for number, block in enumerate(model.transformer.blocks if rank else ()):
        layout = slice_layout(block, parts)
        thin = max(1, rank // parts)
        send = Compressor(layout, group, thin, number, whole, q, short_errors)
        if scales is not None:
            sizes = [(name, padded) for name, padded, _ in layout]
            send.prepare = partial(scales.unscale_slice, number, sizes)
        block.set_all_reduce_hook(_Hook(send, is_last))
        compressors.append(send)
    return Compression(compressors, mesh.device_type)


@contextmanager
def counted_bytes(group: dist.ProcessGroup) -> Iterator[SimpleNamespace]:
    """Count the bytes that this process gives to all_reduce in one group: `total` of the result.

    The count is of payload, not of what an algorithm makes of it.
    """
    seen, real = SimpleNamespace(total=0), dist.all_reduce

    def counted(tensor: Tensor, *args, **kwargs):
        if kwargs.get("group") is group:
            seen.total += tensor.nbytes
        return real(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        yield seen
    finally:
        dist.all_reduce = real
