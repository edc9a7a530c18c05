"""How do many processes hold one model? Each keeps a slice of every parameter.

P processes, N nodes (machines), G processes per node, P = N * G; B batch, E feature width.
Before a block runs, its slices are gathered; after its backward pass each process keeps the sum
of its own slice of the gradient. Slices live inside a node; the same slice of different nodes is
averaged between nodes (hybrid sharding).

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.5 and figure 5; torch's FSDP2.
"""

import os
import sys
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from minidalle.dalle import DALLE
from minidalle.transformer import initial_value

MEASURES = ("loss", "log_likelihood")  # methods of DALLE, beside forward, that read its weights


def start(device: str | None = None, timeout: int = 1800) -> torch.device:
    """Join the processes that torchrun started; returns this process's device.

    device: 'cuda' or 'cpu'; None takes CUDA where there is one. timeout in seconds: how long a
    process waits for one that hangs or died. Raises ValueError outside torchrun.
    """
    if "RANK" not in os.environ:
        raise ValueError("no RANK in the environment: start with torchrun --nproc-per-node N ...")
    kind = (device or ("cuda" if torch.cuda.is_available() else "cpu")).split(":")[0]
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    here = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else kind
    if kind == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    return torch.device(here)


def finish() -> None:
    """Leave together. On the CPU also end the process here, successfully.

    gloo's threads sometimes abort the interpreter on its way out, after all work is done, and
    torchrun would report that as a failure.
    """
    dist.barrier()
    on_cpu = dist.get_backend() == "gloo"
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    if on_cpu:
        os._exit(0)


def make_mesh(device: str, nodes: int = 1) -> DeviceMesh:
    """Arrange the processes as nodes × processes per node, named 'replicate' and 'shard'.

    Returns a 2-D mesh, also for one node. Raises ValueError when the processes do not divide.
    """
    world = dist.get_world_size()
    if nodes < 1 or world % nodes:
        raise ValueError(f"{world} processes do not divide into {nodes} nodes")
    return init_device_mesh(device, (nodes, world // nodes), mesh_dim_names=("replicate", "shard"))


def slice_dim(parameter: nn.Parameter, parts: int) -> Shard | None:
    """Slice a wide matrix (D, 4D), the second of an MLP, by columns and all else by rows.

    So the paper cuts it (table 2): each slice is as square as can be, and PowerSGD, whose cost
    grows with the sum of the sides, sends less. Only where torch can: even division.
    """
    wide = parameter.ndim == 2 and parameter.shape[1] > parameter.shape[0]
    return Shard(1) if wide and parameter.shape[1] % parts == 0 else None


def shard(model: DALLE, mesh: DeviceMesh, precision: str = "float32") -> DALLE:
    """Slice `model`, whole or on the meta device, over mesh; block by block, then the rest.

    mesh: one dimension shards; two replicate over the first (native hybrid sharding). Each block
    is one unit: gathered, used, dropped, its gradients reduced as one flat tensor. Embeddings and
    heads form the last unit and stay float32. Returns the model, changed in place.
    """
    # Weights may travel in 16 bits, gradients add in float32. Inputs keep their type: the identity
    # path stays float32 (figure 4), autocast does the rest.
    policy = partial(MixedPrecisionPolicy, reduce_dtype=torch.float32, cast_forward_inputs=False)
    travel = torch.bfloat16 if precision == "bfloat16" else torch.float32
    place = partial(slice_dim, parts=mesh.size(mesh.ndim - 1))
    for block in model.transformer.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy(travel), shard_placement_fn=place)
    fully_shard(model, mesh=mesh, mp_policy=policy(torch.float32))
    for name in MEASURES:
        register_fsdp_forward_method(model, name)
    return model


@torch.no_grad()
def fill(model: DALLE, device: torch.device | str, seed: int = 0) -> None:
    """Give a sharded model from the meta device its first weights.

    Every process draws the same full tensor from (seed, name), keeps its slice and drops the rest
    (252 MB at most at 12b): the same weights for any number of processes, and those of
    DALLE(config, seed). `nn.init` would give every process of a CPU mesh the same slice.
    """
    model.to_empty(device=device)
    for name, p in model.named_parameters():
        c = model.config
        full = initial_value(name, p.shape, seed, c.n_layers, c.residual_init).to(device)
        if isinstance(p, DTensor):
            full = distribute_tensor(full, p.device_mesh, p.placements, src_data_rank=None)
        p.copy_(full)


def units(model: nn.Module) -> list[FSDPModule]:
    """The separately sharded parts of a model, the root first."""
    return [m for m in model.modules() if isinstance(m, FSDPModule)]


def whole(x: Tensor) -> Tensor:
    """A plain tensor from one that may be sharded. A collective: every process must call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gathered(model: nn.Module, device: torch.device | str) -> dict[str, Tensor]:
    """The whole weights by name, on `device` of the first process; {} elsewhere. A collective.

    In float32, also those kept in 16 bits. One tensor at a time is whole on every process: 252 MB
    at 12b.
    """
    first, state = dist.get_rank() == 0, {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor)
        if first:
            state[name] = (full.float() if full.is_floating_point() else full).to(device)
    return state


def spare_bytes(device: torch.device) -> int:
    """Bytes that a whole model may take beside what this process holds.

    Half of a GPU's free memory, or an eighth of the machine's.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + unused) // 2
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8


def average(tensors: list[Tensor], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Return the tensors' averages over the processes of a group. One flat all-reduce."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Plain data parallelism, for models that fit everywhere: average gradients over processes.

    Sharding adds nothing for the dVAE and CLIP (0.4 and 0.6 GB).
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_copy_(grads, average(grads))


class _Gather(torch.autograd.Function):
    """Features of all processes; backwards, each gets what every process's loss says of its own."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)  # (P * B, E)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_features(features: Tensor) -> tuple[Tensor, int]:
    """For clip.CLIP.gather: features (B, E) -> those of all processes (P * B, E), our first row.

    Gradients pass; averaged over processes they are those of one big batch.
    """
    return _Gather.apply(features), dist.get_rank() * len(features)
