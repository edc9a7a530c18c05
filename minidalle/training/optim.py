"""How weights move: the rate, parameter groups, AdamW with a clipped second moment, averages.

Source: Ramesh et al. 2021, arXiv:2102.12092, appendices A.2 and B.2; Loshchilov and Hutter 2019,
arXiv:1711.05101 (AdamW).
"""

from bisect import bisect_right
from collections import defaultdict

import torch
from torch import Tensor, nn

from minidalle.config import TrainConfig, half_cosine

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)

# Words in the name of a parameter that is a table of learned vectors, held without nn.Embedding.
VECTOR_WORDS = {
    "embedding", "embeddings", "embed", "position", "positions", "positional", "pad", "pads",
    "start", "row", "rows", "column", "columns", "class",
}  # fmt: skip


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of update `step`, counted from 0.

    Warm-up is linear and reaches config.lr at update `warmup`. After it comes half a cosine to
    config.lr_end; where config.halve_at lists updates, a constant rate halved at each of them;
    where config.fall is set, a constant rate, then a straight line to config.lr_end over the last
    `fall` of the updates.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    if config.halve_at:
        return config.lr / 2 ** bisect_right(sorted(config.halve_at), step)
    length = config.lr_steps or config.steps
    if config.fall:
        part = min((length - step) / (config.fall * length), 1.0)
        return config.lr_end + (config.lr - config.lr_end) * max(part, 0.0)
    past, length = step - config.warmup, length - config.warmup
    return half_cosine(config.lr, config.lr_end, past, length)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters into those that decay and those that do not.

    The weights of linear layers and convolutions decay, and so do bare matrices. Gains, biases
    and other vectors (at most one dimension above 1) and embeddings (an nn.Embedding, or a bare
    parameter whose name holds a word of VECTOR_WORDS) do not.
    Returns two groups for an optimiser, "params" being (name, parameter) pairs.
    """
    decay, keep, seen = [], [], set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            group = decay if _decays(module, name, parameter) else keep
            group.append((f"{prefix}.{name}".lstrip("."), parameter))
    groups = [(decay, weight_decay), (keep, 0.0)]
    return [{"params": pairs, "weight_decay": w} for pairs, w in groups if pairs]


def _decays(module: nn.Module, name: str, parameter: Tensor) -> bool:
    if isinstance(module, LAYERS) and name == "weight":
        return True
    if isinstance(module, nn.Embedding) or VECTOR_WORDS & set(name.lower().split("_")):
        return False
    return sum(size > 1 for size in parameter.shape) > 1


class AdamW(torch.optim.Optimizer):
    """torch.optim.AdamW, with the second moment clipped by value before it is used.

    The clipped moment is also the one that is kept. clip_variance 5 is the paper's; 0 is off.
    Source: arXiv:2102.12092, appendix B.2.
    """

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip_variance=0):
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults | dict(clip_variance=clip_variance))

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            by_age: dict[int, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_age.setdefault(self._grow(parameter), []).append(parameter)
            for age, parameters in by_age.items():
                self._update(parameters, age, group)
        return loss

    def _grow(self, parameter: Tensor) -> int:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        return state["step"]

    def _update(self, parameters: list[Tensor], age: int, group: dict) -> None:
        grads = [p.grad for p in parameters]
        means = [self.state[p]["exp_avg"] for p in parameters]
        variances = [self.state[p]["exp_avg_sq"] for p in parameters]
        beta1, beta2 = group["betas"]

        torch._foreach_lerp_(means, grads, 1 - beta1)  # m = beta1 m + (1 - beta1) g
        torch._foreach_mul_(variances, beta2)
        torch._foreach_addcmul_(variances, grads, grads, 1 - beta2)
        if group["clip_variance"]:
            torch._foreach_clamp_max_(variances, group["clip_variance"])

        roots = torch._foreach_sqrt(variances)
        torch._foreach_div_(roots, (1 - beta2**age) ** 0.5)  # bias correction
        torch._foreach_add_(roots, group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] / (1 - beta1**age)
        torch._foreach_addcdiv_(parameters, means, roots, -rate)


class Together:
    """Several optimisers that step as one; each parameter belongs to one of them.

    It offers what the training loop and the checkpoints use of a torch optimiser.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts, self.state = parts, defaultdict(dict)
        for part in parts:
            part.state = self.state  # one for all, by parameter

    @property
    def param_groups(self) -> list[dict]:
        """The groups of all parts, in order; changing a rate there changes it."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer | Together:
    """Return the optimiser of `config` over the trainable parameters of `model`.

    It is AdamW; with config.muon_lr Muon moves the matrices of the residual blocks instead
    (Jordan et al. 2024, kellerjordan.github.io/posts/muon; not the paper's): its update is the
    momentum with all singular values set to about 1.
    """
    groups = parameter_groups(model, config.weight_decay)
    if not config.muon_lr:
        return _adamw(groups, config)
    matrices = [
        (name, p)
        for group in groups
        for name, p in group["params"]
        if group["weight_decay"] and p.ndim == 2 and "blocks." in name
    ]
    taken = {id(p) for _, p in matrices}
    for group in groups:
        group["params"] = [(name, p) for name, p in group["params"] if id(p) not in taken]
    muon = torch.optim.Muon(matrices, config.muon_lr, weight_decay=config.weight_decay)
    for group in muon.param_groups:
        group["rate"] = config.muon_lr / config.lr  # the schedule is that of config.lr
    return Together(_adamw([g for g in groups if g["params"]], config), muon)


def _adamw(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    """Return torch's fused AdamW, or ours where the second moment is clipped: torch cannot."""
    if config.clip_variance:
        variance = config.clip_variance
        return AdamW(groups, config.lr, config.betas, config.eps, clip_variance=variance)
    return torch.optim.AdamW(groups, config.lr, config.betas, config.eps, fused=True)


def clip_gradients(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients down together where their norm exceeds max_norm; 0 only measures.

    Returns the norm before clipping, a scalar tensor.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class Average:
    """The moving average of a model's trainable parameters, in float32 whatever they are.

    After update s (from 0), where s + 1 is a multiple of `every`: a = d a + (1 - d) p. d starts
    low and rises to `decay`, min(decay, (1 + n) / (10 + n)) at the n-th average, or else a run of
    a thousand updates at decay 0.999 would still be a third its random start.
    host: kept in the CPU's memory, as the paper does; for a model that one process holds whole.
    Source: arXiv:2102.12092, appendices A.2 and B.2; the rise is TensorFlow's
    tf.train.ExponentialMovingAverage(num_updates).
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1, host: bool = False):
        self.decay, self.every = decay, every
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.names, self.live = list(trainable), list(trainable.values())
        if host:  # of a sharded parameter its only slice
            self.live = [p.to_local() if hasattr(p, "to_local") else p for p in self.live]
        self.values = [
            p.detach().to("cpu" if host else p.device, torch.float32, copy=True) for p in self.live
        ]
        self.aside: list[Tensor] = []  # the weights, while the model holds the average

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after update `step`, one after another."""
        n, left = divmod(step + 1, self.every)
        for live, value in zip(self.live, self.values, strict=True) if not left else ():
            value.lerp_(live.to(value.device, value.dtype), 1 - min(self.decay, (1 + n) / (10 + n)))

    @torch.no_grad()
    def swap(self) -> None:
        """Put the averaged weights into the model; a second call undoes it, bit for bit."""
        source, aside = self.aside or self.values, []
        for live, value in zip(self.live, source, strict=True):
            if not self.aside:
                aside.append(live.to(value.device, copy=True))
            live.copy_(value)
        self.aside = aside

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged parameters by name."""
        return dict(zip(self.names, self.values, strict=True))
