"""How does a deep model train in float16? Each resblock scales its own gradients.

K resblocks (an attention or an MLP each).
The later a block, the smaller the gradient that reaches it, until it falls below float16's
smallest numbers; one scale can not save the last block without overflowing the first. So the
identity path stays float32, and each branch multiplies the gradient it receives by a scale of its
own, works in float16, and divides it out again where the branch began. bfloat16 needs none of
this: it is an option for hardware without it, and a lesson.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.4, appendix D and figure 4.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

GROWTH = 2 ** (1 / 1000)  # after every update whose gradients were finite
DROP = 2**0.5  # a scale is divided by this after an overflow ...
COOL_DOWN = 125  # ... but not twice within so many updates
# Times the replicas where the loss is divided by the batch over all of them; ours are averaged.
START, LOWEST, HIGHEST = 2.0**13, 2.0**7, 2.0**24


class _Enter(torch.autograd.Function):
    """Into the branch: float16. Back out of it: float32, unscaled, Inf and NaN made 0."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.half()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return torch.nan_to_num(grad.float() / scale, 0.0, 0.0, 0.0), None


class _Leave(torch.autograd.Function):
    """Out of the branch: float32. Back into it: scaled, float16."""

    @staticmethod
    def forward(ctx, y: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return y.float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return torch.nan_to_num(grad * scale, 0.0, 0.0, 0.0).half(), None


def resblocks(model: nn.Module) -> list[nn.Module]:
    """The branches of a DALLE's or Transformer's blocks, attention and MLP in turn: 128 at 12b."""
    stack = getattr(model, "transformer", model)
    return [branch for block in stack.blocks for branch in (block.attention, block.mlp)]


class ResblockScales:
    """One gradient scale per resblock, installed on a model from outside by hooks.

    The branch between its layer norm (float32) and its output runs in float16. After the
    backward pass, `unscale` makes the gradients true again and says whether the update may be
    taken. Parameters keep their names, and stay float32 (under FSDP2 too).
    by_slice, set by PowerSGD: it has `unscale_slice` divide within the backward pass already.
    """

    def __init__(self, model: nn.Module, start: float = START):
        self.branches = resblocks(model)
        self.scales = [torch.tensor(start) for _ in self.branches]
        self.last_drop = [-COOL_DOWN] * len(self.branches)
        self.step, self.by_slice = 0, False
        for number, branch in enumerate(self.branches):
            branch.norm.register_forward_hook(self._edge(_Enter, number))
            branch.register_forward_hook(self._edge(_Leave, number))
            branch.forward = _in_half(branch.forward)

    def _edge(self, edge: type, number: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            if not torch.is_grad_enabled():  # sampling: nothing to scale
                return output
            scale = self.scales[number].to(output.device)
            return edge.apply(output, scale)

        return hook

    def _own(self, branch: nn.Module) -> list[Tensor]:
        """The gradients that carry the branch's scale: all but its layer norm's."""
        inside = [p for n, p in branch.named_parameters() if not n.startswith("norm.")]
        grads = [p.grad for p in inside if p.grad is not None]
        return [g.to_local() if isinstance(g, DTensor) else g for g in grads]

    def unscale_slice(self, block: int, sizes: list[tuple[str, int]], flat: Tensor) -> None:
        """Divide a block's flat gradient slice by its two scales, in place.

        sizes: of each parameter of the block, in the order of `flat`, its name and its elements.
        """
        parts = flat.split([n for _, n in sizes])
        for (name, _), part in zip(sizes, parts, strict=True):
            branch, inside = name.split(".", 1)
            if not inside.startswith("norm."):
                part /= self.scales[2 * block + (branch == "mlp")]

    @torch.no_grad()
    def unscale(self) -> bool:
        """Divide every gradient by its scale, then adapt the scales. True if all were finite.

        Call once per update, after all its backward passes. A collective when there are several
        processes: an overflow in one slice counts for all.
        """
        bad = []
        for branch, scale in zip(self.branches, self.scales, strict=True):
            grads = self._own(branch)
            if not self.by_slice:
                torch._foreach_div_(grads, scale.item())
            bad.append(torch.stack([~g.isfinite().all() for g in grads]).any())
        flags = torch.stack(bad).float()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self._adapt([bool(f) for f in flags.cpu()])
        return not flags.any()

    def _adapt(self, bad: list[bool]) -> None:
        for k, overflowed in enumerate(bad):
            factor = GROWTH
            if overflowed:
                cooled = self.step - self.last_drop[k] >= COOL_DOWN
                factor = 1 / DROP if cooled else 1
                self.last_drop[k] = self.step if cooled else self.last_drop[k]
            self.scales[k] = (self.scales[k] * factor).clamp(LOWEST, HIGHEST)
        self.step += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return scales (K,), updates of the last drops (K,) and the update number."""
        return {
            "scales": torch.stack(self.scales),
            "last_drop": torch.tensor(self.last_drop),
            "step": torch.tensor(self.step),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        self.scales = list(state["scales"].unbind())
        self.last_drop = state["last_drop"].tolist()
        self.step = int(state["step"])


def _in_half(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let matrix products run in float16; weights are cast on the way, norms stay float32."""

    def wrapped(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.float16):
            return forward(x)

    return wrapped
