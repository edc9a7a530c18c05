"""What a DALLE costs, from its configuration alone: parameters, operations, bytes.

L layers, D width, T states, S slices (processes that share one copy of the model).
benchmarks/planner.py compares the bytes with those of the real model, run on fake tensors.

Source: Ramesh et al. 2021, arXiv:2102.12092, table 1 and appendices B, D and E.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from minidalle.attention import may_see
from minidalle.cache import layout
from minidalle.config import DALLEConfig
from minidalle.transformer import layer_kinds

# Bytes that autograd keeps of one block per state and unit of width, with a fused attention kernel:
# 4 + 4 the two branches' inputs (float32 identity path), 2 + 2 normed, 6 queries, keys and values,
# 2 what the heads saw, 8 + 8 the MLP before and after GELU. In float32 the 16-bit ones double.
KEPT = {"bfloat16": 36, "float32": 64}
PASSING = {"bfloat16": 16, "float32": 32}  # gradients on their way through the MLP
PER_LOGIT = {"bfloat16": 10, "float32": 12}  # logits, their float32 log-softmax, its gradient
AT_WORK = 16  # per number of the parameter that an update in the backward pass is moving


def parameters(c: DALLEConfig) -> dict[str, int]:
    """Return the number of parameters of each part."""
    d = c.width
    return {
        "blocks": c.n_layers * (12 * d * d + 13 * d),  # weights; 9d biases and 4d of two norms
        "embeddings": (c.text_vocab + c.image_vocab) * d,
        "positions and pads": (2 * c.text_len + 2 * c.grid + 2) * d,
        "heads": (c.text_vocab + c.image_vocab) * d,
        "final norm": 2 * d,
    }


def states(c: DALLEConfig) -> int:
    """Return T, text and image states together."""
    return c.text_len + c.grid**2


@lru_cache
def pairs(c: DALLEConfig, kind: str) -> int:
    """Return how many (query, key) pairs the mask of one kind of layer allows."""
    position = torch.arange(states(c))
    seen = may_see(position[:, None], position[None], kind, c.text_len, c.grid, c.kernel)
    return int(seen.sum())


def forward_flops(c: DALLEConfig) -> dict[str, int]:
    """Return the floating-point operations of one pair's forward pass, by part.

    A multiply-add counts as two. Attention counts only the pairs that the masks allow. The
    backward pass costs twice as much; checkpointing repeats the blocks' forward pass once more.
    """
    d, seen = c.width, {kind: pairs(c, kind) for kind in set(layer_kinds(c.n_layers))}
    return {
        "matrices": 2 * 12 * d * d * c.n_layers * states(c),
        "attention": sum(4 * d * seen[kind] for kind in layer_kinds(c.n_layers)),
        "heads": 2 * d * ((c.text_len - 1) * c.text_vocab + c.grid**2 * c.image_vocab),
    }


def training_flops(c: DALLEConfig, recompute: bool = False) -> int:
    """Return the operations of one pair's forward and backward pass.

    recompute: also count what checkpointing computes twice (the machine's work, not the model's).
    """
    forward = forward_flops(c)
    again = forward["matrices"] + forward["attention"]
    return 3 * sum(forward.values()) + (again if recompute and c.checkpointing else 0)


@dataclass(frozen=True)
class Scheme:
    """How weights and optimiser state are kept; bytes per parameter."""

    name: str  # the options of the command line that choose it
    weights: int = 4
    gradients: int = 4  # 0: freed inside the backward pass, one block at a time
    moments: int = 8
    average: int = 4  # 0: in the CPU's memory, as in the paper


SCHEMES = (
    Scheme("float32 AdamW"),
    Scheme("--update-in-backward", gradients=0, moments=4, average=0),
    Scheme("--update-in-backward --bfloat16-weights", weights=2, gradients=0, moments=4, average=0),
)


def training_bytes(
    c: DALLEConfig,
    batch: int,
    slices: int = 1,
    scheme: Scheme = SCHEMES[0],
    precision: str = "bfloat16",
) -> dict[str, int]:
    """Return the bytes of one process at the worst moment of an update, by part.

    batch: pairs that it holds at once. slices=1 is a plain model, unless the scheme updates in the
    backward pass: that one is sharded over a mesh of one, so that weights are cast block by block.
    """
    total = sum(parameters(c).values())
    plain_cast = slices == 1 and scheme.gradients and precision == "bfloat16"
    fixed = {
        "weights": total * scheme.weights // slices,
        "moments": total * scheme.moments // slices,
        "averaged weights": total * scheme.average // slices,
        "16-bit copies of weights": total * 2 if plain_cast else 0,
    }
    moments = _moments(c, batch, slices, scheme, precision)
    return fixed | max(moments, key=lambda parts: sum(parts.values()))


def _moments(
    c: DALLEConfig, batch: int, slices: int, scheme: Scheme, precision: str
) -> list[dict[str, int]]:
    """What an update holds for a time, by part, at each moment that can be the worst.

    FSDP gathers a block before it runs, and the next one meanwhile. Embeddings and heads form one
    unit in float32, gathered all the time. A complete gradient is copied into one flat float32
    tensor, which is reduced into a second one, of this process's slice.
    """
    d, counts = c.width, parameters(c)
    total, block = sum(counts.values()), counts["blocks"] // c.n_layers
    # 1. What autograd keeps of all blocks, and what checkpointing makes again of one.
    unit = batch * states(c) * d
    stream, kept, passing = unit * 4, unit * KEPT[precision], unit * PASSING[precision]
    stored = c.n_layers * (stream if c.checkpointing else kept) + stream
    again = kept if c.checkpointing else 0
    logits = batch * ((c.text_len - 1) * c.text_vocab + c.grid**2 * c.image_vocab)
    # 2. What a sharded model gathers, and gradients that are not yet reduced.
    own, rest, heads, gathered, one = total * scheme.gradients // slices, 0, 0, {}, {}
    if slices > 1 or not scheme.gradients:
        width = 2 if precision == "bfloat16" else scheme.weights  # of a gathered weight
        rest, heads = 4 * (total - counts["blocks"]), 4 * counts["heads"]
        blocks = (2 if slices > 1 else 1) * block * width
        gathered = {"embeddings, heads, gathered": rest, "gathered blocks": blocks}
        one = {"gradient of one block": block * (width + 4)}
    # 3. The moments: at the logits, in the last block, in the first, at the embeddings ...
    embeddings = {"activations": 2 * stream, "gradients": own + rest + rest // slices}
    moments = [
        gathered | {"activations": stored, "logits": logits * PER_LOGIT[precision]},
        gathered | one | {"activations": stored + again + passing, "gradients": heads},
        gathered | one | {"activations": stream + kept + passing, "gradients": own + heads},
        embeddings,
    ]
    # ... when an update in the backward pass moves a block; or in the optimiser's step.
    if not scheme.gradients:
        embeddings["optimiser at work"] = AT_WORK * max(c.text_vocab, c.image_vocab) * d // slices
        flat = {"activations": stored, "gradient of one block": block * 4 + block * 4 // slices}
        moving = {"gradients": heads, "optimiser at work": AT_WORK * 4 * d * d // slices}
        moments.append({"embeddings, heads, gathered": rest} | flat | moving)
    elif scheme.moments:
        moments.append({"gradients": own, "optimiser at work": total * 4 // slices})
    return moments


def sampling_bytes(c: DALLEConfig, candidates: int, width: int = 2) -> dict[str, int]:
    """Return the bytes of drawing `candidates` images of one caption at once, by part.

    width: bytes per number, 2 for bfloat16. The windowed cache keeps what the masks still reach,
    and the caption's keys and values once for all candidates.
    """
    cpu = torch.device("cpu")
    slots = sum(layout(kind, c.grid, c.kernel, cpu).slots for kind in layer_kinds(c.n_layers))
    logits = c.image_vocab * 4 * 3  # float32 logits, probabilities and their running sum
    return {
        "weights": sum(parameters(c).values()) * width,
        "caption's keys, values": c.n_layers * c.text_len * 2 * c.width * width,
        "images' keys, values": candidates * slots * 2 * c.width * width,
        "work": candidates * (8 * c.width * 4 + logits),
    }


def full_cache_bytes(c: DALLEConfig, candidates: int, width: int = 2) -> int:
    """Return what a cache of every state in every layer would take, for comparison."""
    return candidates * c.n_layers * states(c) * 2 * c.width * width


def network_bytes(c: DALLEConfig, slices: int, rank: int = 0) -> int:
    """Return the gradient bytes that one process sends between nodes in one update.

    float32; rank R of PowerSGD compresses the blocks' matrices to R / S per slice, 0 nothing.
    """
    d, total = c.width, sum(parameters(c).values())
    if not rank:
        return 4 * total // slices
    # P and Q of a slice: four (D/S, D), one (4D/S, D) and one (D, 4D/S)
    sides = 4 * (d // slices + d) + 2 * (4 * d // slices + d)
    thin = c.n_layers * max(1, rank // slices) * sides
    return 4 * (thin + (total - 12 * d * d * c.n_layers) // slices)
