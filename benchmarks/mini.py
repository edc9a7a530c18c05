"""DALL-E mini at its real size on one CPU thread: seconds an image and memory, beside min-dalle.

Random weights, guidance 16, top-k 256, 256 tokens of 16,384 codes; the image is not decoded: both
use the same network for that. min-dalle is its own encoder and its own `sample_tokens`, called as
its `generate_raw_image_stream` does; its key-value memory always spans 256 cells, and it projects
the caption's keys and values again for every token. Each case runs in a process of its own, which
gives the peak memory; the cases take turns. Time is processor seconds, the least of the rounds.
Run: OMP_NUM_THREADS=1 python benchmarks/mini.py [--tokens 256] [--rounds 2] [--images 1 8]
--tokens below 256: draw only the last so many, where our keys are most, and scale to 256.
--model mindalle: another published prior at its full size, without min-dalle beside it.
Target: 1.5 times as fast as min-dalle, for one image and for eight.
int8 is `generate --int8`; torchao is the 8-bit weights of the package that torch names as its heir.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from peers import MIN_DALLE, min_dalle_halves
from torch import nn

from minidalle import published
from minidalle.config import MiniConfig
from minidalle.generate import draw, guide
from minidalle.published.weights import to_int8
from minidalle.tokenizer import PAD

CELLS, TOP_K, GUIDANCE = 256, 256, 16.0
WORDS = [100, 200, 300, 400, 500, 600]  # a caption of six tokens
CASES = ("min-dalle", "float32", "bfloat16", "int8", "torchao")


def filled(model: nn.Module) -> nn.Module:
    """Give a model on the meta device weights that are random enough, quickly."""
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    noise = 0.02 * torch.randn(2**20 + 7)
    for p in model.parameters():
        p.view(-1).copy_(noise.repeat(-(-p.numel() // len(noise)))[: p.numel()])
    return model


def ours(model: str, case: str, n: int, tokens: int) -> tuple[Callable, Callable]:
    """Return what reads the caption and what draws the last tokens of n images."""
    with torch.device("meta"):
        prior = published.make(model, "prior").prior
    prior = filled(prior).to(torch.bfloat16 if case == "bfloat16" else torch.float32)
    if case == "int8":
        to_int8(prior)
    if case == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(prior, Int8WeightOnlyConfig())
    caption = torch.tensor([WORDS + [PAD] * (prior.caption_len - len(WORDS))])
    text = torch.cat([caption, prior.null_text(1)])
    known = torch.randint(prior.image_vocab, (1, 1, prior.grid**2 - tokens))

    def read() -> None:
        prior.decoder(text, n, known[..., :0])

    def write() -> Callable:
        decoder, last = prior.decoder(text, n, known), None
        if known.shape[-1]:
            last = known[0, :, -1].expand(2 * n)

        def run(last=last) -> None:
            for _ in range(tokens):
                logits = guide(decoder.step(last).view(2, n, -1), GUIDANCE)
                last = draw(logits, torch.rand(n), top_k=TOP_K).repeat(2)

        return run

    return read, write


def theirs(n: int, tokens: int) -> tuple[Callable, Callable]:
    """The same of min-dalle."""
    c = MiniConfig()
    encoder, decoder = map(filled, min_dalle_halves(c, "meta"))
    encoder.pose_tokens = torch.arange(c.text_len).repeat(2, 1)
    for layer in decoder.layers:
        layer.token_indices = torch.arange(CELLS)
    text = torch.ones(2, c.text_len, dtype=torch.long)
    text[0, :2], text[1, : len(WORDS) + 2] = torch.tensor([0, 2]), torch.tensor([0, *WORDS, 2])
    rows = [0] * n + [1] * n
    settings = torch.tensor([1.0, TOP_K, GUIDANCE])

    def read() -> None:
        encoder(text)

    def write() -> Callable:
        encoded, mask = encoder(text)[rows], text[rows].not_equal(1)[:, None, None]
        memory = torch.zeros(c.n_layers, 4 * n, CELLS, c.width)

        def run() -> None:
            token, state = torch.full((n,), CELLS**2 // 4 - 1), memory
            for i in range(CELLS - tokens, CELLS):
                token, state = decoder.sample_tokens(
                    settings=settings, attention_mask=mask, encoder_state=encoded,
                    attention_state=state, prev_tokens=token[:, None],
                    token_index=torch.tensor([i]),
                )  # fmt: skip

        return run

    return read, write


@torch.no_grad()
def measure(model: str, case: str, n: int, tokens: int) -> dict[str, float]:
    """Return the processor seconds of n images, and the peak memory of this process in GB."""
    read, write = theirs(n, tokens) if case == CASES[0] else ours(model, case, n, tokens)
    read(), write()  # to warm up

    def seconds(run: Callable) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    reading, writing = seconds(read), seconds(write())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"token": writing / tokens, "seconds": reading + writing * CELLS / tokens, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=CELLS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--model", default="dalle-mini", help="a prior on 16 x 16 tokens")
    parser.add_argument("--cases", choices=CASES, nargs="+", default=CASES)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(1), torch.manual_seed(0)
    if a.case:
        return print(json.dumps(measure(a.model, a.case, a.images[0], a.tokens)))
    print(published.describe(a.model, torch.float32, "prior"))
    cases = list(a.cases)
    if CASES[0] in cases and (
        a.model != "dalle-mini" or not min_dalle_halves(MiniConfig(), "meta")
    ):
        print(MIN_DALLE)
        cases.remove(CASES[0])
    if "torchao" in cases and not importlib.util.find_spec("torchao"):
        print("no torchao here: pip install torchao")
        cases.remove("torchao")
    for n in a.images:
        best = {case: dict.fromkeys(("token", "seconds", "peak"), float("inf")) for case in cases}
        for _ in range(a.rounds):
            for case in cases:
                call = [sys.executable, __file__, "--case", case, "--images", str(n)]
                call += ["--tokens", str(a.tokens), "--model", a.model]
                done = subprocess.run(call, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                best[case] = {key: min(best[case][key], found[key]) for key in found}
        for case, found in best.items():
            faster = best[cases[0]]["seconds"] / found["seconds"]
            print(
                f"{n} image(s), {case:10} {found['token']:6.3f} s a token, "
                f"{found['seconds'] / n:7.2f} s an image, x{faster:5.2f}, "
                f"peak {found['peak']:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
