"""One training step of the dVAE beside OpenAI's published modules and dalle-pytorch's DiscreteVAE.

Run: python benchmarks/dvae.py [--size 64 --width 64 --batch 4 --compile]
Peers: `pip install --no-deps DALL-E attrs requests`, and see benchmarks/peers.py. OpenAI published
the modules but no training code, so they train by our loss: same sizes, weights and likelihood.
dalle-pytorch's is another network, as wide as makes it equally large, with its own loss (squared
error): compare it by the time for each 10^9 multiplications and additions.
"kept" is what the backward pass needs of the forward pass, the part of peak memory that grows with
the batch. Rows run in turn; the least processor time of each counts.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from peers import DALLE_PYTORCH, alternate, dalle_pytorch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minidalle.config import DALLEConfig, DVAEConfig
from minidalle.dvae import DiscreteVAE

Case = tuple[nn.Module, Callable[[Tensor], Tensor]]
OPENAI = "DALL-E is not installed: its rows are left out"


def openai(config: DVAEConfig) -> DiscreteVAE | None:
    """Put the published encoder and decoder into our loss, or return None without the package."""
    if importlib.util.find_spec("dall_e") is None:
        return None
    from dall_e.decoder import Decoder
    from dall_e.encoder import Encoder

    sizes = dict(
        n_hid=config.n_hid, n_blk_per_group=config.n_blocks, vocab_size=config.vocab_size
    )  # fmt: skip
    model = DiscreteVAE(config)
    weights = model.state_dict()
    model.encoder, model.decoder = Encoder(**sizes), Decoder(**sizes, n_init=config.n_init)
    model.requires_grad_(True)  # its own requires_grad=True fails, as it fills weights in place
    model.load_state_dict(weights)
    return model


def lucidrains(config: DVAEConfig, n_parameters: int) -> nn.Module | None:
    """Build dalle-pytorch's DiscreteVAE with about n_parameters, or return None without it."""
    tiny = DALLEConfig(text_vocab=8, text_len=4, image_vocab=8, grid=2, n_layers=1, n_heads=1)
    whole = dalle_pytorch(tiny)
    if whole is None:
        return None
    kind = type(whole.vae)
    build = partial(
        kind, image_size=config.image_size, num_tokens=config.vocab_size, num_resnet_blocks=1,
        codebook_dim=config.n_init, num_layers=config.n_pools, kl_div_loss_weight=config.beta,
    )  # fmt: skip
    widths = range(32, 513, 16)
    with torch.device("meta"):
        sizes = {w: count(build(hidden_dim=w)) for w in widths}
    return build(hidden_dim=min(widths, key=lambda w: abs(sizes[w] - n_parameters)))


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def losses(config: DVAEConfig, device: str, compiled: bool) -> dict[str, Case]:
    """Return by name a model and a function from pictures to its loss."""
    torch.manual_seed(0)
    ours, theirs, flat = DiscreteVAE(config), openai(config), DiscreteVAE(config)
    peer = lucidrains(config, count(ours))
    models = {"minidalle": ours, "minidalle, channels last": flat}
    if theirs is None:
        print(OPENAI)
    else:
        models["DALL-E package"] = theirs
        models["DALL-E package, channels last"] = openai(config)
    found = {name: (model, partial(our_loss, model)) for name, model in models.items()}
    if compiled:
        model = DiscreteVAE(config).to(memory_format=torch.channels_last)
        found["minidalle, channels last, compiled"] = model, torch.compile(partial(our_loss, model))
    if peer is None:
        print(DALLE_PYTORCH)
    else:
        found["dalle-pytorch"] = peer, partial(peer, return_loss=True)
    for name, (model, _) in found.items():
        model.to(device)
        if "channels last" in name:
            model.to(memory_format=torch.channels_last)
    return found


def our_loss(model: DiscreteVAE, images: Tensor) -> Tensor:
    return model.loss({"images": images}, 100)[0]


def step(model: nn.Module, loss: Callable, images: Tensor, dtype: torch.dtype) -> Callable:
    """Return a function that makes one update, with products in dtype."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)

    def run() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype == torch.bfloat16):
            value = loss(images)
        value.backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def kept(model: nn.Module, loss: Callable, images: Tensor, dtype: torch.dtype) -> int:
    """Return the bytes of distinct tensors, parameters apart, kept for the backward pass."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast(images.device.type, dtype, enabled=dtype == torch.bfloat16),
    ):
        alive = loss(images)  # so that no storage is freed and its address used again
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    del alive
    return sum(size for address, size in storages.items() if address not in own)


def operations(loss: Callable, images: Tensor) -> int:
    """Count multiplications and additions of a forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        loss(images).backward()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("size", 64), ("width", 64), ("codes", 512), ("blocks", 1), ("batch", 4),
                        ("rounds", 3)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    a = parser.parse_args()
    config = DVAEConfig(
        image_size=a.size, n_hid=a.width, n_blocks=a.blocks, vocab_size=a.codes
    )  # OpenAI's modules take no other number of groups, and no width below 64 or 512 codes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.rand(a.batch, 3, a.size, a.size, device=device)
    wide = images.contiguous(memory_format=torch.channels_last)
    models, cases, bytes_kept = losses(config, device, a.compile), {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, (model, loss) in models.items():
            key = name, dtype
            batch = wide if "channels last" in name else images
            cases[key] = step(model, loss, batch, dtype)
            if "compiled" not in name:
                bytes_kept[key] = kept(model, loss, batch, dtype)
    work = {name: operations(loss, images) for name, (_, loss) in models.items()
            if "compiled" not in name}  # fmt: skip
    best = alternate(cases, a.rounds)
    report(a, device, models, best, work, bytes_kept)


def report(a, device, models, best, work, bytes_kept) -> None:
    """Print the table; ratios are to our default, channels last, in the same precision."""
    print(
        f"{a.batch} pictures of {a.size} x {a.size}, n_hid {a.width}, {a.blocks} block(s) a group, "
        f"{a.codes} codes, {device}, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}"
    )
    print(f"{'':48}{'ms':>8}{'ratio':>8}{'ms / 10^9':>11}{'kept MB':>9}{'parameters':>12}")
    for (name, dtype), seconds in best.items():
        model = models[name][0]
        ratio = seconds / best["minidalle, channels last", dtype]
        each = work.get(name, work["minidalle"])
        memory = bytes_kept.get((name, dtype))
        kept_mb = "-" if memory is None else f"{memory / 1e6:.1f}"
        print(
            f"{name + ', ' + str(dtype).removeprefix('torch.'):48}{1e3 * seconds:8.1f}{ratio:8.2f}"
            f"{1e12 * seconds / each:11.2f}{kept_mb:>9}{count(model):12,}"
        )


if __name__ == "__main__":
    main()
