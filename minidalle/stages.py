"""The stages of a run in their order, each from the files of the one before to its own.

A run lives in one folder, runs/<preset>: tokenizer/, dvae/, dalle/, clip/, each with the finished
product and the configuration that made it. A stage that is finished is not trained again.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minidalle import data, plot
from minidalle.clip import CLIP
from minidalle.config import PRESETS, Config, from_json, to_json
from minidalle.dalle import DALLE
from minidalle.dvae import DiscreteVAE, spread_codes
from minidalle.files import write_text
from minidalle.generate import sample
from minidalle.models import build, load_model
from minidalle.tokenizer import BPETokenizer
from minidalle.train import SECTIONS, fit, split_batch

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "checkpoints"
N_TEST = 256  # pictures in a test batch of the dVAE
TEST_PIXELS = 2**20  # in such a batch at most; 365 MiB for each 256 x 256 at the paper's size
N_SPREAD = 400  # pictures that the first codes are spread over
N_SHEET = 16  # pictures on a sheet of samples


def use_half_the_cores() -> None:
    """Let torch use half the cores, at least one, unless OMP_NUM_THREADS says otherwise.

    On a busy machine two threads that wait for each other are slower than one.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))


class MissingStage(ValueError):
    """A stage needs the product of an earlier one; the message names the command to run."""


def product(stage: str) -> str:
    """The file that a finished stage leaves in its folder."""
    return "tokenizer.json" if stage == "tokenizer" else "model.safetensors"


def finished(run: Path, stage: str, config: Config) -> bool:
    """Is the stage trained already, with this configuration?

    Raises ValueError naming the fields in which the finished stage's configuration differs.
    """
    folder = Path(run) / stage
    if not (folder / product(stage)).is_file() or not (folder / "config.json").is_file():
        return False
    old = from_json((folder / "config.json").read_text(encoding="utf-8"))
    sections = ("data", "tokenizer") if stage == "tokenizer" else SECTIONS[f"train_{stage}"]
    sections += ("seed",) if stage == "tokenizer" else (f"train_{stage}", "seed")
    changed = [text for name in sections for text in _changes(name, old, config)]
    if changed:
        raise ValueError(
            f"{folder} holds a finished {stage} of another configuration: {'; '.join(changed)}. "
            f"Train into another folder with --run, or again with --fresh"
        )
    return True


def _changes(section: str, old: Config, new: Config) -> list[str]:
    a, b = getattr(old, section), getattr(new, section)
    if not dataclasses.is_dataclass(a):
        return [] if a == b else [f"{section} was {a}, is now {b}"]
    pairs = [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return [f"{section}.{name} was {x}, is now {y}" for name, x, y in pairs if x != y]


def load_stage(run: Path, stage: str, device: str | torch.device = "cpu"):
    """Load the product of a finished stage: a BPETokenizer or a model in evaluation mode.

    Raises MissingStage, with the command to run, where it is not there.
    """
    folder = Path(run) / stage
    if not (folder / product(stage)).is_file():
        name = Path(run).name
        where = f"--preset {name}" if name in PRESETS else f"--run {run}"
        raise MissingStage(
            f"no {stage} in {run}: train it first with `python -m minidalle {stage} {where}`"
        )
    if stage == "tokenizer":
        return BPETokenizer.load(folder / product(stage))
    return load_model(folder, device)


def train_tokenizer(config: Config, run: Path) -> BPETokenizer:
    """Learn byte-pair merges from the training captions -> run/tokenizer/tokenizer.json."""
    captions = data.captions(data.load(config, "train"))
    bar = tqdm(captions, desc="tokenizer", unit=" captions", disable=None)
    tokenizer = BPETokenizer.train(bar, config.tokenizer.vocab_size)
    folder = Path(run) / "tokenizer"
    write_text(folder / "config.json", to_json(config))
    tokenizer.save(folder / product("tokenizer"))
    return tokenizer


def train_stage(
    config: Config,
    stage: str,
    run: Path,
    device: str = "cpu",
    fresh: bool = False,
    tensorboard: bool = False,
    *,
    model: nn.Module | None = None,
    rank: int = 0,
    world: int = 1,
    share: Callable = lambda *callbacks: callbacks,
    **scale,
) -> dict[str, float]:
    """Train 'dvae', 'dalle' or 'clip' into run/<stage>, going on where an earlier call stopped.

    The keyword arguments are for minidalle.scale: a model that is built already, the rows
    rank::world of each batch for this process, share(evaluate, sheet), which returns what this
    process does for the two, and more arguments for `fit`.
    Returns the last metrics. Raises MissingStage where an earlier stage is not trained.
    """
    run = Path(run)
    needs = {"dvae": (), "dalle": ("tokenizer", "dvae"), "clip": ("tokenizer",)}[stage]
    loaded = {name: load_stage(run, name, device) for name in needs}
    if stage == "dalle":
        _check_dvae(config, loaded["dvae"])
    train_set, test_set = data.load(config, "train"), data.load(config, "test")
    options = dict(loaded, seed=config.seed, cache=run / "cache" if stage == "dalle" else None)
    batches = data.batches(train_set, config, stage, **options, rank=rank, world=world)
    shared = dict(rank=rank, world=world) if stage == "dalle" else {}
    tests = data.batches(test_set, config, stage, **options, **shared)
    evaluate, sheet = share(*CALLBACKS[stage](config, test_set, next(tests(0)), **loaded))
    options = dict(
        run_config=config, evaluate=evaluate, sheet=sheet, seed=config.seed, device=device,
        resume=not fresh, tensorboard=tensorboard,
    )  # fmt: skip
    if model is None:
        model = build(config, stage)
        if stage == "dvae" and config.dvae.spread_codes:
            some, _ = data.first(train_set, N_SPREAD)
            generator = torch.Generator().manual_seed(config.seed)
            spread_codes(model, some.float() / 255, generator)
    return fit(model, batches, getattr(config, f"train_{stage}"), run / stage, **options | scale)


def _check_dvae(config: Config, dvae: DiscreteVAE) -> None:
    found, wanted = dvae.config, config.dalle
    if (found.grid, found.vocab_size) != (wanted.grid, wanted.image_vocab):
        raise ValueError(
            f"the trained dvae gives a grid of {found.grid} with {found.vocab_size} codes, but "
            f"dalle.grid={wanted.grid} and dalle.image_vocab={wanted.image_vocab}"
        )


Callbacks = tuple[Callable[[nn.Module, int], dict[str, float]], Callable[[nn.Module, Path], None]]


def _dvae_callbacks(config: Config, test_set, batch: dict[str, Tensor]) -> Callbacks:
    images = _test_images(test_set)

    def evaluate(model: DiscreteVAE, step: int) -> dict[str, float]:
        device = next(model.parameters()).device
        found = model.evaluate(images.to(device), step, torch.Generator(device).manual_seed(0))
        return {"bound": -found["elbo_true"], **found}

    def sheet(model: DiscreteVAE, path: Path) -> None:
        some = images[:N_SHEET].to(next(model.parameters()).device)
        plot.save(plot.show_pairs(some, model.decode(model.tokens(some))), path)

    return evaluate, sheet


def _dalle_callbacks(config: Config, test_set, batch, tokenizer, dvae) -> Callbacks:
    captions = [test_set.caption(i) for i in range(min(N_SHEET // 2, len(test_set)))]

    def evaluate(model: DALLE, step: int) -> dict[str, float]:
        n, found = config.train_dalle.accumulate, Counter()
        for part in split_batch(batch, n, next(model.parameters()).device):
            loss, metrics = model.loss(part, step)
            for name, value in {"loss": loss, **metrics}.items():
                found[name] += value / n
        return dict(found)

    def sheet(model: DALLE, path: Path) -> None:
        text = tokenizer.encode_batch(captions, config.dalle.text_len - 1)
        generator = torch.Generator().manual_seed(0)
        images = dvae.decode(sample(model, text, len(captions), generator=generator))
        notes = [[""]] * len(captions)
        plot.save(plot.sample_sheet(captions, [("sample", images)], notes), path)

    return evaluate, sheet


def _clip_callbacks(config: Config, test_set, batch, tokenizer) -> Callbacks:
    def evaluate(model: CLIP, step: int) -> dict[str, float]:
        here = {k: v.to(next(model.parameters()).device) for k, v in batch.items()}
        loss, metrics = model.loss(here, step)
        return {"loss": loss, **metrics}

    return evaluate, None


def _test_images(test_set) -> Tensor:
    """The first pictures of the test set, as many as fit, (N, 3, H, W) float in [0, 1]."""
    n = min(N_TEST, TEST_PIXELS // test_set[0][0][0].numel(), len(test_set))
    return torch.stack([test_set[i][0] for i in range(n)]).float() / 255


CALLBACKS = {"dvae": _dvae_callbacks, "dalle": _dalle_callbacks, "clip": _clip_callbacks}
