"""Images per second beside dalle-pytorch, min-dalle's decoder, and ourselves without a cache.

Run: python benchmarks/sampling.py [--batch 4]; the peers are in benchmarks/peers.py. Or ours alone,
beside the limit: python benchmarks/sampling.py --preset base --batch 32 128 256
With peers, all have the same width, depth, heads and grid (16 x 16: min-dalle knows no other), and
draw tokens only: no picture is decoded. dalle-pytorch's default path computes everything again for
every token, also where `use_cache=True` is asked for without guidance; its cache is "really on"
here. min-dalle always runs its guidance, two streams per picture, and its text is encoded
elsewhere: compare our row with guidance. The limit: each token must read the weights, and the keys
and values in its reach, at the speed of a large copy.
Targets: 5x dalle-pytorch's default path, 2x its cached path; on a GPU half of the limit.
"""

import argparse
from collections.abc import Callable

import torch
from peers import DALLE_PYTORCH, MIN_DALLE, alternate, dalle_pytorch, min_dalle_decoder
from torch import Tensor

from minidalle.attention import layer_mask
from minidalle.config import DALLEConfig, get_config
from minidalle.dalle import DALLE
from minidalle.generate import draw, sample
from minidalle.transformer import layer_kinds

TEXT_LEN = 64  # states; min-dalle's length of text


def with_its_cache(peer, text: Tensor, cells: int) -> Callable[[], None]:
    """Sample from dalle-pytorch through its `cache` argument."""

    @torch.no_grad()
    def run() -> None:
        cache: dict = {}
        image = text[:, :0]
        for _ in range(cells):
            logits = peer(text, image, cache=cache)[:, -1, peer.num_text_tokens :]
            token = draw(logits, torch.rand(len(text)), top_k=logits.shape[1] // 2)
            image = torch.cat([image, token[:, None]], 1)

    return run


def min_dalle(peer, batch: int, cells: int) -> Callable[[], None]:
    """Sample from min-dalle's decoder as its `MinDalle.generate_raw_image_stream` does."""
    settings = torch.tensor([1.0, peer.image_vocab_count // 2, 3.0])
    encoded = torch.randn(2 * batch, TEXT_LEN, peer.embed_count)
    mask = torch.ones(2 * batch, 1, 1, TEXT_LEN, dtype=torch.bool)

    @torch.no_grad()
    def run() -> None:
        state = torch.zeros(peer.layer_count, 4 * batch, cells, peer.embed_count)
        token = torch.full((batch,), peer.image_vocab_count)
        for i in range(cells):
            token, state = peer.sample_tokens(
                settings=settings, attention_mask=mask, encoder_state=encoded,
                attention_state=state, prev_tokens=token[:, None], token_index=torch.tensor([i]),
            )  # fmt: skip

    return run


def keys_in_reach(c: DALLEConfig) -> float:
    """Return how many keys of the image a token may see: a mean over cells, a sum over layers."""
    n = c.text_len
    seen = {
        kind: layer_mask(kind, n, c.grid, c.kernel)[n:, n:].sum(1).double().mean().item()
        for kind in ("row", "column", "conv")
    }
    return sum(seen[kind] for kind in layer_kinds(c.n_layers))


def bytes_per_token(dalle: DALLE, batch: int) -> float:
    """Return what one step of `batch` pictures of one caption must read: weights, keys, values."""
    c = dalle.config
    unread = ("text", "image_embedding", "pads", "positions", "rows", "columns")
    weights = sum(p.numel() for n, p in dalle.named_parameters() if not n.startswith(unread))
    keys = c.n_layers * c.text_len + batch * keys_in_reach(c)
    return dalle.image_start.element_size() * (weights + 2 * c.width * keys)


def bandwidth(device: str) -> float:
    """Return the bytes per second that a large copy reads and writes."""
    source = torch.randn(2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    seconds = alternate({"copy": lambda: target.copy_(source)}, 5)["copy"]
    return 2 * source.numel() * source.element_size() / seconds


def beside_the_limit(preset: str, batches: list[int], rounds: int, device: str) -> None:
    c = get_config(preset).dalle
    with torch.device("meta"):
        dalle = DALLE(c)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    dalle = dalle.to(dtype).to_empty(device=device).eval()
    for parameter in dalle.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    text, speed = torch.randint(1, c.text_vocab, (c.text_len - 1,)), bandwidth(device)
    print(f"{preset}, {dtype}, {device}: a copy moves {speed / 1e9:,.0f} GB/s")
    for n in batches:
        cases = {
            "": lambda n=n: sample(dalle, text, n),
            ", compiled": lambda n=n: sample(dalle, text, n, compile=True),
        }
        limit = n * speed / (c.grid**2 * bytes_per_token(dalle, n))
        for name, seconds in alternate(cases, rounds).items():
            print(
                f"batch {n}{name}: {n / seconds:.2f} images/s, {1e3 * seconds / c.grid**2:.2f} ms "
                f"a token; limit {limit:.2f} images/s, {limit * seconds / n:.2f}x ours",
                flush=True,
            )


def with_peers(a: argparse.Namespace, device: str) -> None:
    c = DALLEConfig(
        text_vocab=2048, text_len=TEXT_LEN, image_vocab=1024, grid=16, n_layers=a.layers,
        n_heads=a.heads, head_dim=a.head_dim, kernel=5,
    )  # fmt: skip
    dalle, cells, batch = DALLE(c).to(device).eval(), c.grid**2, a.batch[0]
    text = torch.randint(1, c.text_vocab, (TEXT_LEN - 1,))
    fast = {
        "minidalle": lambda: sample(dalle, text, batch),
        "minidalle, guided (2 streams)": lambda: sample(dalle, text, batch, guidance=3.0),
    }
    slow = {"minidalle without its cache": lambda: sample(dalle, text, batch, use_cache=False)}
    peer = dalle_pytorch(c)
    if peer is None:
        print(DALLE_PYTORCH)
    elif device == "cpu":
        wide = torch.nn.functional.pad(text, (0, 1), value=1).expand(batch, -1)
        fast["dalle-pytorch, cache really on"] = with_its_cache(peer.eval(), wide, cells)
        slow["dalle-pytorch, default"] = lambda: peer.generate_images(wide)
    bart = min_dalle_decoder(c.width, c.n_layers, c.n_heads, c.image_vocab)
    if bart is None:
        print(MIN_DALLE)
    elif device == "cpu":
        fast["min-dalle decoder (2 streams)"] = min_dalle(bart.eval(), batch, cells)
    best = alternate(fast, a.rounds) | alternate(slow, 1, warm_up=False)
    print(
        f"{TEXT_LEN}+{cells} tokens, batch {batch}, {a.layers} layers x {c.width}, float32, "
        f"{device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    for name, seconds in best.items():
        ratio = seconds / best["minidalle"]
        print(f"{name:34} {batch / seconds:8.2f} images/s  x{ratio:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 4), ("heads", 4), ("head_dim", 64), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--preset", help="ours alone, at the size of a preset, beside the limit")
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    if a.preset:
        beside_the_limit(a.preset, a.batch, a.rounds, device)
    else:
        with_peers(a, device)


if __name__ == "__main__":
    main()
