"""The command line: `minidalle VERB --preset NAME section.field=value …`.

Each verb does one stage's work in the folder of a run and ends by saying what it wrote and what
to run next. A mistake in the call is one line on stderr and exit status 2.
"""

import argparse
import itertools
import os
import shlex
import sys
import time
from collections.abc import Sized
from pathlib import Path

import torch

from minidalle import data, plot, stages
from minidalle.cli import generate
from minidalle.config import PRESETS, STAGES, Config, get_config
from minidalle.evaluation import demo
from minidalle.evaluation.metrics import nearest_psnr
from minidalle.models import load
from minidalle.stages import SHIPPED, use_half_the_cores
from minidalle.training.finished import MissingStage

HELP = {  # of each verb, and what follows it in an example
    "data": ("find or download the data set, show what is in it", "--preset toy"),
    "tokenizer": ("learn the byte-pair tokenizer from the captions", "tokenizer.vocab_size=512"),
    "dvae": ("train the discrete VAE, or take a published image tokenizer (--model)",
             "--preset toy train_dvae.steps=500"),
    "dalle": ("train the transformer over text and image tokens",
              "--preset toy dalle.n_layers=6 --run runs/deeper"),
    "clip": ("train the reranker", "--preset toy"),
    "generate": ("draw images for a caption",
                 '"a small red heart on a navy background" -n 8 --out hearts.png'),
    "evaluate": ("measure a run, or prepare a blind vote between two (--vote)", "--preset toy"),
    "compare": ("is my loss curve normal? a run beside the one that made the shipped checkpoints",
                "runs/toy"),
    "plan": ("what a preset needs: parameters, memory, time",
             "--preset 12b --gpus 64 --batch 1024"),
    "demo": ("all stages in a row on the toy world, then a sheet of samples", ""),
}  # fmt: skip
SCALE = ("compress", "fixed_q", "update_in_backward", "bfloat16_weights", "float16")
N_TESTS = 200  # test images whose nearest training image is looked for


def build_parser() -> argparse.ArgumentParser:
    """One parser for each verb; what they share is added to each."""
    parser = argparse.ArgumentParser(
        prog="minidalle", description="DALL-E from scratch, stage by stage."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (text, example) in HELP.items():
        sub = verbs.add_parser(
            verb, help=text, description=text[0].upper() + text[1:] + ".",
            epilog=f"example: minidalle {verb} {example}",
        )  # fmt: skip
        _add_common(sub)
        if verb in ("tokenizer", "dvae", "dalle", "clip", "demo"):
            sub.add_argument("--fresh", action="store_true", help="train again from the start")
        if verb in ("data", "tokenizer", "dvae", "dalle", "clip", "evaluate"):
            sub.add_argument("--data", metavar="FOLDER", help="your own images with captions")
        if verb in ("dvae", "dalle", "clip"):
            sub.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard")
            _add_scale(sub)
    _add_special(verbs.choices)
    return parser


def _add_common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--preset", default="toy", help=f"one of {', '.join(PRESETS)} (default toy)")
    # torchrun takes --run for an abbreviation of an option of its own; --folder is the same.
    sub.add_argument("--run", "--folder", help="folder of the run (default runs/PRESET)")
    sub.add_argument("--device", help="cpu, cuda or mps (default cpu; under torchrun a GPU if any)")
    sub.add_argument("--seed", type=int, help="of every random choice (default 0)")
    sub.add_argument("--threads", type=int, help="CPU threads (default half the cores)")


def _add_scale(sub: argparse.ArgumentParser) -> None:
    scale = sub.add_argument_group("under torchrun only")
    scale.add_argument("--nodes", type=int, help="machines (default as torchrun says)")
    scale.add_argument(
        "--compress", type=int, default=0, metavar="RANK",
        help="PowerSGD between machines; -1 is the paper's rank (default 0: off)",
    )  # fmt: skip
    for option, text in {
        "--fixed-q": "compress as the paper does: one Q, 16-bit errors",
        "--update-in-backward": "free each gradient at once",
        "--bfloat16-weights": "and keep the blocks' weights in 16 bits",
        "--float16": "the paper's per-block scaling",
    }.items():
        scale.add_argument(option, action="store_true", help=text)


def _add_special(verbs: dict[str, argparse.ArgumentParser]) -> None:
    generate.add_model(verbs["dvae"])
    generate.add_options(verbs["generate"])
    evaluate = verbs["evaluate"]
    evaluate.add_argument("--vote", nargs=2, metavar=("RUN_A", "RUN_B"), help="a blind vote page")
    evaluate.add_argument("--count", nargs="+", metavar="FILE", help="vote_key.json and the CSVs")
    evaluate.add_argument("-n", type=int, default=64, help="captions a kind and seed (default 64)")
    evaluate.add_argument("--seeds", type=int, default=4, help="random seeds (default 4)")
    evaluate.add_argument("--protocol", choices=["paper"], help="measure the paper's section 3")
    evaluate.add_argument(
        "--overlap", type=float, default=0.95,
        help="cosine from which the protocol takes a test image for one of training (default 0.95)",
    )  # fmt: skip
    evaluate.add_argument("--candidates", type=int, default=16, help="a caption (default 16)")
    plan = verbs["plan"]
    plan.add_argument("--gpus", type=int, default=1)
    plan.add_argument("--batch", type=int, help="sequences per update (default the preset's)")
    plan.add_argument("--gpu", default="h200", help="their kind (default h200)")
    plan.add_argument("--price", type=float, metavar="DOLLARS", help="of one GPU for an hour")
    plan.add_argument("--grid", type=float, metavar="GRAMS", help="of CO2 that a kWh costs")
    verbs["compare"].add_argument("log", metavar="RUN", nargs="?", help="default runs/PRESET")
    for verb, sub in verbs.items():
        if verb not in ("generate", "compare"):
            sub.add_argument("overrides", nargs="*", metavar="section.field=value")


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0, 2 for a mistake in the call, 130 for Ctrl-C."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    try:
        _set_up(args)
        VERBS[args.verb](args)
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped'}", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MINIDALLE_TRACEBACK"):
            raise
        if os.environ.get("RANK", "0") == "0":  # under torchrun, say it once
            print(f"minidalle {args.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    """Parse a call; overrides may stand before and after options, which argparse cannot."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _set_up(args: argparse.Namespace) -> None:
    use_half_the_cores()
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.seed is not None and args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}")
    if args.device is None:
        on_gpu = "WORLD_SIZE" in os.environ and torch.cuda.is_available()
        args.device = "cuda" if on_gpu else "cpu"
    try:
        if args.device == "cuda" and "LOCAL_RANK" in os.environ:  # else all would use the first
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {args.device} cannot be used here: {reason}") from None


def _config(args: argparse.Namespace) -> Config:
    extra = [f"seed={args.seed}"] if args.seed is not None else []
    if getattr(args, "data", None):
        extra += ["data.name=folder", f"data.folder={args.data}"]
    return get_config(args.preset, [*args.overrides, *extra])


def _run_folder(args: argparse.Namespace) -> Path:
    return Path(args.run or Path("runs") / args.preset)


def _options(args: argparse.Namespace, overrides: bool = True) -> str:
    """What was said in this call, to be repeated in the command that comes next."""
    said = ["--preset", args.preset]
    for name in ("run", "data", "seed"):
        if getattr(args, name, None) is not None and (overrides or name == "run"):
            said += [f"--{name}", str(getattr(args, name))]
    return shlex.join(said + (args.overrides if overrides else []))


def run_data(args: argparse.Namespace) -> None:
    """Load both splits, draw a sheet of images with captions."""
    config, run = _config(args), _run_folder(args)
    train, test = data.load(config, "train"), data.load(config, "test")
    images, captions = data.first(train, 24)
    figure = plot.show_captioned(images.float() / 255, captions)
    path = plot.save(figure, run / "data.png")
    n = len(train) if isinstance(train, Sized) else "streamed"
    print(f"{n} training and {len(test)} test images of {config.data.name!r}.")
    learnt = (run / "tokenizer" / "tokenizer.json").is_file()
    tokenizer = load(run, "tokenizer") if learnt else None
    if isinstance(train, data.InMemory):
        tests, _ = data.first(test, N_TESTS)
        decibels = nearest_psnr(tests, train.images).median()
        print(f"The nearest training image of a test image: {decibels:.1f} dB (the median).")
    if cut := data.cut_captions(train, tokenizer, config):
        print(f"{cut[0].upper()}{cut[1:]}.")
    print(f"Wrote {path}. Next: minidalle tokenizer {_options(args)}")


def run_tokenizer(args: argparse.Namespace) -> None:
    """Learn the byte-pair merges, unless they are there already."""
    config, run = _config(args), _run_folder(args)
    path = run / "tokenizer" / "tokenizer.json"
    if args.fresh or not stages.finished(run, "tokenizer", config):
        tokenizer = stages.train_tokenizer(config, run)
        print(f"Wrote {path}: {tokenizer.vocab_size} tokens.", end=" ")
    else:
        print(f"{path} is there already.", end=" ")
    print(f"Next: minidalle dvae {_options(args)}")


def run_model(args: argparse.Namespace) -> None:
    """Train the dVAE, the transformer or CLIP; under torchrun over several processes."""
    stage = args.verb
    if getattr(args, "model", None):
        return generate.take_codebook(args, _run_folder(args) / "dvae")
    config, run = _config(args), _run_folder(args)
    needs_scale = any(getattr(args, name) for name in SCALE)
    if needs_scale and "WORLD_SIZE" not in os.environ:
        raise ValueError("the options under 'under torchrun only' need torchrun; see docs/launch")
    resized = "WORLD_SIZE" in os.environ and any(run.glob(f"{stage}/checkpoints/step-*/"))
    if needs_scale or resized or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _run_sharded(args, config, run)
    began = time.monotonic()
    if not args.fresh and stages.finished(run, stage, config):
        print(f"{run / stage} is finished already.", end=" ")
    else:
        metrics = stages.train_stage(
            config, stage, run, args.device, fresh=args.fresh, tensorboard=args.tensorboard
        )
        shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k.startswith("test_"))
        seconds = time.monotonic() - began
        print(f"Wrote {run / stage / 'model.safetensors'} in {seconds:.0f} s: {shown}.", end=" ")
    print(f"Next: {_next_command(stage, args, config)}")


def _run_sharded(args: argparse.Namespace, config: Config, run: Path) -> None:
    """Train one stage over the processes that torchrun started."""
    from minidalle.scale import launch  # the only way to torch.distributed

    options = launch.Options(args.nodes, **{name: getattr(args, name) for name in SCALE})
    launch.train_stage(config, args.verb, run, args.device, args.fresh, args.tensorboard, options)
    if launch.is_main():
        print(f"Wrote {run / args.verb}. Next: {_next_command(args.verb, args, config)}")
    launch.finish()


def _next_command(stage: str, args: argparse.Namespace, config: Config) -> str:
    following = dict(itertools.pairwise(STAGES))
    if stage in following:
        return f"minidalle {following[stage]} {_options(args)}"
    caption = demo.CAPTIONS[0]
    if config.data.name != "shapes":  # one of that world
        caption = data.load(config, "test").caption(0)
    return f"minidalle generate {shlex.quote(caption)} {_options(args, overrides=False)}"


def run_generate(args: argparse.Namespace) -> None:
    """Draw candidates, keep the best, write a sheet."""
    generate.run(args, args.model or _find_run(args))


def _find_run(args: argparse.Namespace) -> Path:
    """The run named by --run, or runs/PRESET, or the checkpoints that ship with the code."""
    folder = _run_folder(args)
    if args.run or (folder / "dalle" / "model.safetensors").is_file():
        return folder
    shipped = SHIPPED / args.preset
    if (shipped / "dalle").is_dir():
        return shipped
    raise MissingStage(
        f"no trained run in {folder}: train one with `minidalle tokenizer "
        f"--preset {args.preset}` and the verbs after it, or name one with --run"
    )


def run_evaluate(args: argparse.Namespace) -> None:
    """Measure a run, write the page of a blind vote, or count the votes."""
    from minidalle.evaluation import run, vote

    if args.count:
        return print(vote.describe(vote.read_votes(args.count[0], args.count[1:])))
    out = _run_folder(args)
    if args.vote:
        path = run.vote_between(args.vote, out, args.n, args.seed or 0, args.device)
        return print(f"Wrote {path}: open it, vote, export the CSV, then evaluate --count.")
    options = dict(own=args.data or "", paper=args.protocol == "paper", device=args.device)
    options["overlap"] = args.overlap
    options |= dict(n=args.n, candidates=args.candidates, seeds=args.seeds, seed=args.seed or 0)
    print(run.evaluate_run(_find_run(args), out, **options))


def run_compare(args: argparse.Namespace) -> None:
    """Draw a run's curves over the reference's, and say whether they are normal."""
    from minidalle.evaluation import compare

    run = Path(args.log or _run_folder(args))
    print(compare.compare_run(run, run.name if run.name in PRESETS else args.preset))


def run_plan(args: argparse.Namespace) -> None:
    """Print what a preset needs."""
    from minidalle.scale import plan

    made = plan.plan(_config(args), gpus=args.gpus, batch=args.batch, gpu=args.gpu)
    print(plan.table(made, args.price, args.grid))


def run_demo(args: argparse.Namespace) -> None:
    """All stages on the toy world, then samples."""
    if PRESETS.get(args.preset) and get_config(args.preset).data.name != "shapes":
        raise ValueError(f"the demo draws the toy world; --preset {args.preset} is another one")
    demo.run(_config(args), _run_folder(args), SHIPPED / "toy" / "judge", args.device, args.fresh)


VERBS = dict(
    data=run_data, tokenizer=run_tokenizer, dvae=run_model, dalle=run_model, clip=run_model,
    generate=run_generate, evaluate=run_evaluate, compare=run_compare, plan=run_plan, demo=run_demo,
)  # fmt: skip
