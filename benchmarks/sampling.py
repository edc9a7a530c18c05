"""Images per second beside dalle-pytorch, min-dalle's decoder, and ourselves without a cache.

Run: python benchmarks/sampling.py [--batch 4] ; peers: see benchmarks/peers.py. All have the same
width, depth, heads and grid (16 x 16: min-dalle knows no other), and draw tokens only: no picture
is decoded. dalle-pytorch's default path computes everything again for every token, also where
`use_cache=True` is asked for without guidance; its cache is "really on" here. min-dalle always
runs its guidance, two streams per picture, and its text is encoded elsewhere: compare our row with
guidance. On a GPU the limit is the memory traffic of weights and of keys in reach.
Targets: 5x dalle-pytorch's default path, 2x its cached path; on a GPU half of the limit.
"""

import argparse
from collections.abc import Callable

import torch
from peers import DALLE_PYTORCH, MIN_DALLE, alternate, dalle_pytorch, min_dalle_decoder
from torch import Tensor

from minidalle.config import DALLEConfig
from minidalle.dalle import DALLE
from minidalle.generate import sample
from minidalle.logits import draw, restrict

TEXT_LEN = 64  # states; min-dalle's length of text


def with_its_cache(peer, text: Tensor, cells: int) -> Callable[[], None]:
    """Sample from dalle-pytorch through its `cache` argument."""

    @torch.no_grad()
    def run() -> None:
        cache: dict = {}
        image = text[:, :0]
        for _ in range(cells):
            logits = peer(text, image, cache=cache)[:, -1, peer.num_text_tokens :]
            token = draw(restrict(logits, top_k=logits.shape[1] // 2), 1.0, torch.rand(len(text)))
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


def bandwidth_limit(dalle: DALLE, batch: int, gigabytes: float) -> float:
    """Return the most images per second that so many gigabytes per second allow.

    Every step reads all weights but the embeddings and the keys and values in reach.
    """
    c, size = dalle.config, dalle.image_start.element_size()
    unread = ("text", "image_embedding", "pads", "positions", "rows", "columns")
    weights = sum(p.numel() for n, p in dalle.named_parameters() if not n.startswith(unread))
    keys = c.text_len + batch * (c.grid + 1)
    step = size * (weights + 2 * c.n_layers * c.width * keys)  # bytes
    return batch * gigabytes * 1e9 / (c.grid**2 * step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 4), ("heads", 4), ("head_dim", 64), ("batch", 4), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bandwidth", type=float, default=0, help="of the GPU, in GB/s")
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    c = DALLEConfig(
        text_vocab=2048, text_len=TEXT_LEN, image_vocab=1024, grid=16, n_layers=a.layers,
        n_heads=a.heads, head_dim=a.head_dim, kernel=5,
    )  # fmt: skip
    torch.manual_seed(0)
    dalle, cells = DALLE(c).to(device).eval(), c.grid**2
    text = torch.randint(1, c.text_vocab, (TEXT_LEN - 1,))
    fast = {
        "minidalle": lambda: sample(dalle, text, a.batch),
        "minidalle, guided (2 streams)": lambda: sample(dalle, text, a.batch, guidance=3.0),
    }
    slow = {"minidalle without its cache": lambda: sample(dalle, text, a.batch, use_cache=False)}
    peer = dalle_pytorch(c)
    if peer is None:
        print(DALLE_PYTORCH)
    elif device == "cpu":
        wide = torch.nn.functional.pad(text, (0, 1), value=1).expand(a.batch, -1)
        fast["dalle-pytorch, cache really on"] = with_its_cache(peer.eval(), wide, cells)
        slow["dalle-pytorch, default"] = lambda: peer.generate_images(wide)
    bart = min_dalle_decoder(c.width, c.n_layers, c.n_heads, c.image_vocab)
    if bart is None:
        print(MIN_DALLE)
    elif device == "cpu":
        fast["min-dalle decoder (2 streams)"] = min_dalle(bart.eval(), a.batch, cells)
    best = alternate(fast, a.rounds) | alternate(slow, 1, warm_up=False)
    print(
        f"{TEXT_LEN}+{cells} tokens, batch {a.batch}, {a.layers} layers x {c.width}, float32, "
        f"{device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    for name, seconds in best.items():
        ratio = seconds / best["minidalle"]
        print(f"{name:34} {a.batch / seconds:8.2f} images/s  x{ratio:6.2f}")
    if a.bandwidth:
        limit = bandwidth_limit(dalle, a.batch, a.bandwidth)
        print(f"limit at {a.bandwidth:g} GB/s: {limit:.2f} images/s")


if __name__ == "__main__":
    main()
