"""The verb `generate`: its options, and published models in a run's place."""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from minidalle import data, models, plot, published
from minidalle.data import image_prompts
from minidalle.generate import Pipeline
from minidalle.priors import guided
from minidalle.published.weights import to_int8


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a published model."""
    names = ", ".join(published.CHECKPOINTS)
    parser.add_argument("--model", metavar="NAME", help=f"a published model: {names}")
    parser.add_argument("--weights", metavar="FOLDER", help="its files (default: fetched)")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `generate`."""
    add_model(parser)
    parser.add_argument("--clip", metavar="FOLDER", help="OpenAI's CLIP, to choose candidates")
    parser.add_argument("caption", help="what to draw")
    parser.add_argument("-n", type=int, default=8, help="images to keep (default 8)")
    parser.add_argument("--candidates", type=int, help="draw so many, keep the best n by CLIP")
    parser.add_argument(
        "--method", choices=["sample", "search"], default="sample",
        help="sample from the prior, or search without one for what CLIP likes (default sample)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=200, help="of the search (default 200)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--bfloat16", action="store_true", help="read half the bytes a token")
    parser.add_argument("--float16", action="store_true", help="the same, for older GPUs")
    parser.add_argument("--int8", action="store_true", help="8-bit weights of the prior, on a CPU")
    parser.add_argument("--batch", type=int, help="images at once (default 64, 4 by --model)")
    parser.add_argument("--compile", action="store_true", help="for many images on a GPU")
    parser.add_argument("--prompt", metavar="IMAGE", help="an image to keep a part of")
    parser.add_argument(
        "--keep", metavar="PART", default="",
        help="in tokens: top:4, bottom:, left: or right:4, rows and columns 0:4,2:6; joined by +",
    )  # fmt: skip
    parser.add_argument("--edit", metavar="MASK", help="an image: draw anew where it is white")
    parser.add_argument("--out", default="samples.png", help="a .png file (default samples.png)")


def take_codebook(args: argparse.Namespace, folder: Path) -> None:
    """Put a published image tokenizer where a run's first stage leaves its own."""
    print(published.describe(args.model, torch.float32, "codebook"))
    codebook = published.load(args.model, args.weights).codebook
    published.save_codebook(codebook, folder)
    grid, codes = codebook.config.grid, codebook.config.vocab_size
    print(f"Wrote {folder / 'model.safetensors'}: {grid} x {grid} tokens of {codes} codes.")


def run(args: argparse.Namespace, source: str | Path) -> None:
    """Draw candidates from a run or a published model, keep the best, write a sheet."""
    if Path(args.out).suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {args.out!r}")
    if args.method == "search" and (args.candidates or args.prompt or args.keep or args.edit):
        raise ValueError("--method search takes no --candidates, --prompt, --keep or --edit")
    if args.int8 and (args.bfloat16 or args.float16 or args.device != "cpu" or args.compile):
        raise ValueError(
            "--int8 takes no --bfloat16, --float16 or --compile, and needs --device cpu"
        )
    pipeline = load(args, source)
    vocabulary = Path(source) / "tokenizer"
    if words := data.unseen_words(pipeline.tokenizer, vocabulary, args.caption):
        print(f"No training caption has {' or '.join(words)}: that is a guess.", file=sys.stderr)

    prompt = _prompt(args, pipeline)

    def show(images: torch.Tensor) -> Path:
        return plot.save(plot.show_images(images, title=args.caption, side=1.1), args.out)

    batch = args.batch if args.batch is not None else 4 if args.model else 64
    generator = torch.Generator().manual_seed(args.seed or 0)
    if args.method == "search":
        images, scores = search(args, pipeline, generator)
    else:
        images, scores = pipeline.generate(
            args.caption, n=args.n, candidates=args.candidates, temperature=args.temperature,
            top_k=args.top_k, top_p=args.top_p, guidance=args.guidance, prompt=prompt,
            generator=generator, batch_size=batch, compile=args.compile, finished=show,
        )  # fmt: skip
    shown = "unranked, for there is no CLIP"
    if not scores.isnan().any():
        shown = "best first; CLIP scores " + ", ".join(f"{s:.3f}" for s in scores.tolist())
    print(f"Wrote {show(images)}: {len(images)} images from {source}, {shown}.")


def _prompt(args: argparse.Namespace, pipeline: Pipeline) -> torch.Tensor | None:
    """Return the image tokens that --prompt keeps, and say how many of them are unseen."""
    if not args.prompt or bool(args.keep) == bool(args.edit):
        if args.prompt or args.keep or args.edit:
            raise ValueError("an image prompt needs --prompt IMAGE and one of --keep, --edit")
        return None
    keep = image_prompts.keep_part(args.keep, pipeline.prior.grid) if args.keep else None
    if keep is None:
        keep = image_prompts.keep_black(Path(args.edit), pipeline.prior.grid)
    tokens = image_prompts.read(Path(args.prompt), pipeline.codebook, keep)
    print(image_prompts.describe(keep))
    return tokens


def search(args: argparse.Namespace, pipeline: Pipeline, generator: torch.Generator) -> tuple:
    """Search under CLIP instead of sampling: images and their scores, best first."""
    with tqdm(total=args.steps, desc="search", disable=None) as bar:
        images = guided.search(
            pipeline.codebook, pipeline.reranker, args.caption, args.n, args.steps,
            generator=generator, watch=lambda step, tokens: bar.update(),
        )  # fmt: skip
    scores = pipeline.score([args.caption], images)
    best = scores.argsort(descending=True, stable=True)
    return images[best].cpu(), scores[best]


def load(args: argparse.Namespace, source: str | Path) -> Pipeline:
    """Load the pipeline; of a published model, say first what it needs. A search has no prior."""
    dtype = torch.bfloat16 if args.bfloat16 else torch.float16 if args.float16 else torch.float32
    searching = args.method == "search"
    if args.model:
        kinds = ("codebook",) if searching else ("codebook", "prior")
        print(published.describe(args.model, dtype, *kinds))
        pipeline = Pipeline.load(source, args.device, dtype, args.weights)
    elif searching:
        stages = ("tokenizer", "dvae") if args.clip else ("tokenizer", "dvae", "clip")
        tokenizer, codebook, *clip = (models.load(source, s, args.device) for s in stages)
        pipeline = Pipeline(tokenizer, codebook, None, *clip)
    else:
        pipeline = Pipeline.load(source, args.device, dtype)
    if args.int8 and not searching:
        to_int8(pipeline.prior)
    if args.clip or (args.model and (searching or (args.candidates or 0) > args.n)):
        pipeline.reranker = published.load("openai-clip", args.clip, device=args.device).reranker
    return pipeline
