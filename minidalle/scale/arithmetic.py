"""What a DALLE costs, from its configuration alone: parameters, operations, bytes.

L layers, D width, T states, V vocabulary, S slices (processes that share one copy of the model).
Everything is a formula over config.DALLEConfig; footprint.py checks them against the real model.

Source: Ramesh et al. 2021, arXiv:2102.12092, table 1 and appendices B, D and E.
"""

from dataclasses import dataclass

import torch

from minidalle.attention import may_see
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

    batch: pairs that it holds at once. The worst moment is one of six: at the logits, in the
    backward pass of the last block, or of the first, when all other gradients are there, when a
    block's or the embeddings' gradient is complete, or in the optimiser's step.
    slices=1 is a plain model, unless the scheme updates in the backward pass: that one is sharded
    over a mesh of one, so that weights are cast block by block.
    """
    cast = 2 if precision == "bfloat16" and scheme.weights == 4 else 0
    sharded, total = slices > 1 or scheme.gradients == 0, sum(parameters(c).values())
    fixed = _fixed(c, slices, scheme, compressed)
    if sharded:
        gradients = _sharded_gradients(c, slices, scheme, cast or scheme.weights)
    else:
        fixed["16-bit copies of weights"] = total * cast
        gradients = {"first block": {"gradients": total * scheme.gradients}}
    if scheme.gradients and scheme.moments:  # roots of all second moments
        shares = total * scheme.gradients // slices, total * 4 // slices
        gradients["step"] = {"gradients": shares[0], "optimiser at work": shares[1]}
    kept = _activations(c, batch, precision)
    moments = [kept.get(name, {}) | gradients.get(name, {}) for name in kept.keys() | gradients]
    return fixed | max(moments, key=lambda parts: sum(parts.values()))


def _fixed(c: DALLEConfig, slices: int, scheme: Scheme, compressed: bool) -> dict[str, int]:
    """Bytes that a process holds all the time."""
    counts = parameters(c)
    total = sum(counts.values())
    return {
        "weights": total * scheme.weights // slices,
        "moments": total * scheme.moments // slices,
        "averaged weights": total * scheme.average // slices,
        "error buffers": counts["blocks"] * 4 // slices if compressed else 0,
    }


def _sharded_gradients(
    c: DALLEConfig, slices: int, scheme: Scheme, width: int
) -> dict[str, dict[str, int]]:
    """Bytes of what FSDP gathers, and of gradients, at the moments of `training_bytes`.

    width: bytes of a gathered weight of a block. Embeddings and heads form one unit in float32,
    gathered all the time. A complete gradient is copied into one flat float32 tensor, which is
    reduced into a second one, of this process's slice.
    """
    d, counts = c.width, parameters(c)
    total, block = sum(counts.values()), counts["blocks"] // c.n_layers
    rest, head = total - counts["blocks"], 4 * (c.text_vocab + c.image_vocab) * d
    share, several = total * scheme.gradients // slices, 2 if slices > 1 else 1
    root = {"embeddings, heads, gathered": 4 * rest}
    now = root | {
        "gathered blocks": several * block * width,
        "gradient of one block": block * (width + 4),
    }
    moments = {
        "logits": root | {"gathered blocks": several * block * width},
        "last block": now | {"gradients": head},
        "first block": now | {"gradients": share + head},
        "embeddings": {"gradients": share + 4 * rest + 4 * rest // slices},
    }
    if not scheme.gradients:
        flat = {"gradient of one block": block * 4 + block * 4 // slices, "gradients": head}
        widest = max(c.text_vocab, c.image_vocab) * d
        moments["block"] = root | flat | {"optimiser at work": AT_WORK * 4 * d * d // slices}
        moments["embeddings"]["optimiser at work"] = AT_WORK * widest // slices
    return moments


def _activations(c: DALLEConfig, batch: int, precision: str) -> dict[str, dict[str, int]]:
    """Bytes of activations at the moments of `training_bytes`."""
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
        "block": {"activations": all_blocks},
        "embeddings": {"activations": 2 * stream},
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


def keys_in_reach(c: DALLEConfig, kind: str) -> float:
    """Return how many image states a cell of one kind of layer sees, itself included, on average.

    Besides them it sees the caption's text_len states.
    """
    cells, text = c.grid**2, c.text_len
    return (pairs(c, kind) - text * (text + 1) // 2) / cells - text


def drawing_bytes(c: DALLEConfig, candidates: int, width: int = 2) -> dict[str, float]:
    """Return the bytes that must be read, on average, to draw one token of every candidate.

    All candidates show one caption. Writing the new keys and values, and embeddings, are nothing
    beside this.
    """
    counts = parameters(c)
    seen = sum(keys_in_reach(c, kind) for kind in layer_kinds(c.n_layers))
    return {
        "weights": (counts["blocks"] + c.image_vocab * c.width) * width,
        "caption's keys, values": c.n_layers * c.text_len * 2 * c.width * width,
        "pictures' keys, values": candidates * seen * 2 * c.width * width,
    }


def drawing_flops(c: DALLEConfig) -> int:
    """Return the floating-point operations of drawing one picture, its caption read already."""
    d, cells = c.width, c.grid**2
    seen = sum(c.text_len + keys_in_reach(c, kind) for kind in layer_kinds(c.n_layers))
    return int(cells * (2 * (12 * d * d * c.n_layers + d * c.image_vocab) + 4 * d * seen))


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
