"""How does a model train whose gradients and moments do not fit? Update inside the backward pass.

As soon as the gradient of one parameter is complete, AdamW moves that parameter and the gradient
is freed: gradients of one layer exist at a time. Moments are stored in bfloat16; weights in
float32, or in bfloat16 with stochastic rounding, which keeps small updates alive on average.
All arithmetic is float32. Per parameter: 8 bytes with float32 weights, 6 with bfloat16, against
16 for weights, gradients and two moments in float32.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.4 and appendix B.2 (16-bit moments, clipped
second moment); Lv et al. 2023, arXiv:2306.09782 (updates in the backward pass).
"""

import weakref
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minidalle.attention.compiled import allow_kernels
from minidalle.config import TrainConfig
from minidalle.training.optim import AdamW, parameter_groups


def stochastic_round(x: Tensor, bits: Tensor) -> Tensor:
    """float32 -> bfloat16, up with probability equal to the fraction dropped: right on average.

    bits: int32, uniform in [0, 2**16), the shape of x. Returns bfloat16; NaN and Inf stay so.
    """
    rounded = (x.view(torch.int32) + bits).bitwise_and_(-65536).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).bfloat16()


def _local(t: Tensor) -> Tensor:
    return t.to_local() if isinstance(t, DTensor) else t


def _adamw(
    grad: Tensor,
    weight: Tensor,
    moments: tuple[Tensor, Tensor],
    numbers: tuple[Tensor, ...],
    clip: Tensor,
    finite: Tensor,
    betas: tuple[float, float],
    eps: float,
    clip_variance: float,
) -> Tensor:
    """Move the moments of one parameter in place, if finite (), and return its new weight.

    clip () scales the gradient. numbers (): rate, share of the weight that stays, correction of
    the second moment. All arithmetic, and the result, are float32.
    """
    grad = grad.float() * clip
    m, v = (moment.to(torch.float32, copy=True) for moment in moments)
    (rate, stays, correction), (beta1, beta2) = numbers, betas
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    if clip_variance:
        v.clamp_(max=clip_variance)
    for moment, value in zip(moments, (m, v), strict=True):
        moment.copy_(torch.where(finite, value.to(moment.dtype), moment))
    m.mul_(rate).div_(v.sqrt_().div_(correction).add_(eps))
    return weight.to(torch.float32, copy=True).mul_(stays).sub_(m)


@lru_cache(maxsize=1)
def _compiled_adamw() -> Callable[..., Tensor]:
    """One pass over a parameter's numbers, where `_adamw` makes some fifteen."""
    allow_kernels()
    return torch.compile(_adamw, dynamic=True)


class BackwardAdamW(AdamW):
    """optim.AdamW whose updates happen during `loss.backward()`; `step()` has nothing left to do.

    Set the rate before the backward pass. The norm of the whole gradient is known only when all
    of it is gone, so clip_norm uses the norm of the update before (`end_update` measures it). A
    parameter whose gradient is not finite stays where it is. A batch must be one backward pass:
    there is no gradient left to accumulate.
    Works on plain and on sharded parameters, float32 or bfloat16, on any device.
    """

    def __init__(self, groups: list[dict], config: TrainConfig, moments=torch.bfloat16, seed=0):
        if config.accumulate > 1:
            raise ValueError(
                f"accumulate={config.accumulate}: updates in the backward pass leave no gradient "
                f"to add to; set accumulate=1"
            )
        super().__init__(
            groups, config.lr, config.betas, config.eps, clip_variance=config.clip_variance
        )
        self.clip_norm, self.moments, self.seed = config.clip_norm, moments, seed
        self.arithmetic = _compiled_adamw() if config.compile else _adamw
        self.squares: list[Tensor] = []  # of this update's gradients, one sum per parameter
        self.last_norm: Tensor | None = None
        places = [(i, p) for i, group in enumerate(self.param_groups) for p in group["params"]]
        for number, (place, parameter) in enumerate(places):
            parameter.register_post_accumulate_grad_hook(self._hook(place, number))
            parameter.moved_by = self  # which so lives as long as they do

    def step(self, closure=None) -> None:
        """Do nothing: the weights have moved already."""

    def end_update(self, parameters: list[Tensor], max_norm: float) -> Tensor:
        """Return the norm of this update's gradient; it clips the next one. For fit's `clip`."""
        total = torch.stack(self.squares).sum()
        if isinstance(parameters[0], DTensor):
            group = parameters[0].device_mesh.get_group(parameters[0].device_mesh.ndim - 1)
            dist.all_reduce(total, group=group)
        self.squares, norm = [], total.sqrt()
        self.last_norm = norm if norm.isfinite() else self.last_norm
        return norm

    def _hook(self, place: int, number: int) -> Callable[[Tensor], None]:
        # Python can not free a circle that leads through a tensor's hooks: a weak reference.
        find = weakref.ref(self)

        def hook(parameter: Tensor) -> None:
            optimizer = find()
            with torch.no_grad():
                optimizer._move(parameter, optimizer.param_groups[place], number)
            parameter.grad = None  # freed here: this is the point of it all

        return hook

    def _move(self, parameter: Tensor, group: dict, number: int) -> None:
        """Take one step with one parameter, the `number`-th of the model."""
        state = self.state[parameter]
        if not state:
            names = ("exp_avg", "exp_avg_sq")
            state |= {name: torch.zeros_like(parameter, dtype=self.moments) for name in names}
        age = state["step"] = state.get("step", 0) + 1
        grad, weight = _local(parameter.grad), _local(parameter).detach()
        # 1. The size of the gradient, for the norm; whether it is finite.
        square = torch.linalg.vector_norm(grad.float()).square()
        self.squares.append(square)
        clip, finite = torch.ones_like(square), square.isfinite()
        if self.clip_norm and self.last_norm is not None:
            clip = self.clip_norm / self.last_norm.clamp(min=self.clip_norm)
        # 2. AdamW in float32. To torch.compile, plain numbers would be constants.
        beta1, beta2 = group["betas"]
        stays = 1 - group["lr"] * group["weight_decay"]
        numbers = group["lr"] / (1 - beta1**age), stays, (1 - beta2**age) ** 0.5
        moments = _local(state["exp_avg"]), _local(state["exp_avg_sq"])
        fixed = group["betas"], group["eps"], group["clip_variance"]
        numbers = torch.tensor(numbers).unbind()
        new = self.arithmetic(grad, weight, moments, numbers, clip, finite, *fixed)
        # 3. Back into the weight. The draws depend on (seed, update, parameter): a resumed run
        # repeats them.
        if weight.dtype == torch.bfloat16:
            key = ((self.seed * 1_000_003 + age) * 1_000_003 + number) % 2**62
            g = torch.Generator(new.device).manual_seed(key)
            bits = torch.empty_like(new, dtype=torch.int32).random_(0, 1 << 16, generator=g)
            new = stochastic_round(new, bits)
        weight.copy_(torch.where(finite, new, weight))


def backward_adamw(model: nn.Module, config: TrainConfig, seed: int = 0) -> BackwardAdamW:
    """Return a BackwardAdamW over the trainable parameters of `model`, as optim.make_optimizer."""
    return BackwardAdamW(parameter_groups(model, config.weight_decay), config, seed=seed)
