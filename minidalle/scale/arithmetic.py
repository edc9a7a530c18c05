"""What a DALLE costs, from its configuration alone: parameters, operations, bytes.

L layers, D width, T states, V vocabulary, S slices (processes that share one copy of the model).
Everything is a formula over config.DALLEConfig; footprint.py checks them against the real model.

Source: Ramesh et al. 2021, arXiv:2102.12092, table 1 and appendices B, D and E.
"""

from dataclasses import dataclass

import torch

from ..attention import may_see
from ..config import DALLEConfig
from ..transformer import layer_kinds

# Bytes that autograd keeps of one block per state and unit of width, with a fused attention kernel:
# 4 + 4 the two branches' inputs (float32 identity path), 2 + 2 normed, 6 queries, keys and values,
# 2 what the heads saw, 8 + 8 the MLP before and after GELU. In float32 the 16-bit ones double.
KEPT = {"bfloat16": 36, "float32": 64}
PASSING = {"bfloat16": 16, "float32": 32}  # gradients on their way through the MLP
PER_LOGIT = {"bfloat16": 10, "float32": 12}  # logits, their float32 log-softmax, its gradient


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

    name: str
    weights: int = 4
    gradients: int = 4  # 0: freed inside the backward pass, one block at a time
    moments: int = 8
    average: int = 4  # 0: in the CPU's memory, as in the paper


SCHEMES = (
    Scheme("float32 AdamW"),
    Scheme("update in backward, bf16 moments", gradients=0, moments=4, average=0),
    Scheme("the same, bf16 weights", weights=2, gradients=0, moments=4, average=0),
)


def training_bytes(
    c: DALLEConfig,
    batch: int,
    slices: int = 1,
    scheme: Scheme = SCHEMES[0],
    precision: str = "bfloat16",
    compressed: bool = False,
) -> dict[str, int]:
    """Return the bytes of one process at the worst moment of an update, by part.

    batch: pairs that it holds at once. The worst moment is one of three in the backward pass: at
    the logits, in the last block, or in the first, when all other gradients are there.
    slices=1 is a plain model, unless the scheme updates in the backward pass: that one is sharded
    over a mesh of one, so that weights are cast block by block.
    """
    counts = parameters(c)
    total, block = sum(counts.values()), counts["blocks"] // c.n_layers
    cast = 2 if precision == "bfloat16" and scheme.weights == 4 else 0
    sharded = slices > 1 or scheme.gradients == 0
    root = 4 * (total - counts["blocks"]) if slices > 1 else 0
    fixed = {
        "weights": total * scheme.weights // slices,
        "moments": total * scheme.moments // slices,
        "averaged weights": total * scheme.average // slices,
        "error buffers": counts["blocks"] * 4 // slices if compressed else 0,
        "embeddings, heads, gathered": root,
        "16-bit copies of weights": 0 if sharded else total * cast,
        "gathered blocks (2)": 2 * block * (cast or scheme.weights) if sharded else 0,
    }
    moments = _moments(c, batch, precision)
    of_block = block * ((cast or scheme.weights) + 4) if sharded else 0
    grads = total * scheme.gradients // slices + root
    moments["last block"] |= {"gradient of one block": of_block}
    moments["first block"] |= {"gradient of one block": of_block, "gradients": grads}
    return fixed | max(moments.values(), key=lambda parts: sum(parts.values()))


def _moments(c: DALLEConfig, batch: int, precision: str) -> dict[str, dict[str, int]]:
    """Bytes of activations at three moments of the backward pass."""
    stream = batch * states(c) * c.width * 4
    kept = batch * states(c) * c.width * KEPT[precision]
    passing = batch * states(c) * c.width * PASSING[precision]
    logits = batch * ((c.text_len - 1) * c.text_vocab + c.grid**2 * c.image_vocab)
    all_blocks = c.n_layers * (stream if c.checkpointing else kept) + stream
    again = kept if c.checkpointing else 0
    return {
        "logits": {"activations": all_blocks, "logits": logits * PER_LOGIT[precision]},
        "last block": {"activations": all_blocks + again + passing},
        "first block": {"activations": stream + kept + passing},
    }


def image_slots(c: DALLEConfig, kind: str) -> int:
    """Return how many image states a layer's cache must keep for one candidate."""
    if kind == "column":
        return c.grid**2
    reach = c.grid if kind == "row" else _conv_reach(c)
    return min(reach + 1, c.grid**2)


def _conv_reach(c: DALLEConfig) -> int:
    """How many cells back the farthest cell lies that the convolution mask sees."""
    half = c.kernel // 2
    return max(
        d
        for d in range(c.grid**2)
        if d // c.grid <= half and (d % c.grid <= half or d % c.grid >= c.grid - half)
    )


def sampling_bytes(c: DALLEConfig, candidates: int, width: int = 2) -> dict[str, int]:
    """Return the bytes of drawing `candidates` pictures of one caption at once, by part.

    width: bytes per number, 2 for bfloat16. The windowed cache keeps what the masks still reach,
    and the caption's keys and values once for all candidates.
    """
    slots = sum(image_slots(c, kind) for kind in layer_kinds(c.n_layers))
    logits = c.image_vocab * 4 * 3  # float32 logits, probabilities and their running sum
    return {
        "weights": sum(parameters(c).values()) * width,
        "caption's keys, values": c.n_layers * c.text_len * 2 * c.width * width,
        "pictures' keys, values": candidates * slots * 2 * c.width * width,
        "work": candidates * (8 * c.width * 4 + logits),
    }


def full_cache_bytes(c: DALLEConfig, candidates: int, width: int = 2) -> int:
    """Return what a cache of every state in every layer would take, for comparison."""
    return candidates * c.n_layers * states(c) * 2 * c.width * width


def network_bytes(c: DALLEConfig, slices: int, rank: int = 0) -> int:
    """Return the gradient bytes that one process sends between nodes in one update.

    float32; rank R of PowerSGD compresses the blocks' matrices to R / S per slice, 0 nothing.
    """
    d, counts = c.width, parameters(c)
    total = sum(counts.values())
    matrices = 12 * d * d * c.n_layers
    if not rank:
        return 4 * total // slices
    thin = max(1, rank // slices)
    # P and Q of a slice: four (D/S, D), one (4D/S, D) and one (D, 4D/S)
    sides = 4 * (d // slices + d) + 2 * (4 * d // slices + d)
    return 4 * (c.n_layers * thin * sides + (total - matrices) // slices)
