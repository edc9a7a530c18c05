"""The stages of a run in their order, each from the files of the one before to its own.

A run lives in one folder, runs/<preset>: tokenizer/, dvae/, dalle/, clip/, each with the finished
product and the configuration that made it. A stage that is finished is not trained again.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minidalle import data, plot
from minidalle.config import Config, to_json
from minidalle.dalle import DALLE
from minidalle.data import lookalikes
from minidalle.dvae import DiscreteVAE
from minidalle.files import write_text
from minidalle.generate import sample
from minidalle.models import build, load
from minidalle.tokenizer import BPETokenizer
from minidalle.train import fit, split_batch
from minidalle.training.finished import check_made_from, digests, made_alike, product
from minidalle.training.identity import SECTIONS
from minidalle.training.run import Alone
from minidalle.training.spread import spread_codes

HERE = Path(__file__).resolve().parent
SHIPPED = HERE / "shipped"  # checkpoints in an installed package …
if not SHIPPED.is_dir():
    SHIPPED = HERE.parent / "data" / "checkpoints"  # … and in the repository
N_TEST = 256  # images in a test batch of the dVAE
TEST_PIXELS = 2**20  # in such a batch at most; 365 MiB for each 256 x 256 at the paper's size
N_SPREAD = 400  # images that the first codes are spread over
N_SHEET = 16  # images on a sheet of samples


def use_half_the_cores() -> None:
    """Let torch use half the cores, at least one, unless OMP_NUM_THREADS says otherwise.

    On a busy machine two threads that wait for each other are slower than one.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))


def finished(run: Path, stage: str, config: Config) -> bool:
    """Is the stage trained already, with this configuration and from the present earlier stages?

    What may change between the parts of a run may differ, but for its length.
    Raises ValueError naming the fields in which the finished stage's configuration differs, or
    MissingStage where it is stale.
    """
    if not (Path(run) / stage / product(stage)).is_file():
        return False
    sections = ("data", "tokenizer") if stage == "tokenizer" else SECTIONS[f"train_{stage}"]
    own = () if stage == "tokenizer" else (f"train_{stage}",)
    if not made_alike(Path(run) / stage, config, (*sections, *own, "seed")):
        return False
    check_made_from(run, stage, data.version(config))
    return True


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
    team: Alone | None = None,
) -> dict[str, float]:
    """Train 'dvae', 'dalle' or 'clip' into run/<stage>, going on where an earlier call stopped.

    team: the processes of the run, by default one.
    Returns the last metrics. Raises MissingStage where an earlier stage is not trained.
    """
    run, team = Path(run), team or Alone()
    # What earlier stages made.
    training = getattr(config, f"train_{stage}")
    needs = {"dvae": (), "dalle": ("tokenizer", "dvae"), "clip": ("tokenizer",)}[stage]
    hard = training.lookalikes or training.rebuilt  # batches for CLIP with hard negatives
    if hard:
        needs = ("tokenizer", "dvae")
        if team.world > 1:
            raise ValueError("several processes need train_clip.lookalikes=0 train_clip.rebuilt=0")
    loaded = {name: load(run, name, device) for name in needs}
    for name in loaded:
        made_alike(run / name, config, ("data", name))
    if stage == "dalle" and (n := loaded["tokenizer"].vocab_size) > config.dalle.text_vocab:
        raise ValueError(f"the tokenizer has {n} tokens, but {config.dalle.text_vocab=}")
    if training.warmup >= training.steps or 0 < training.lr_steps <= training.warmup:
        warnings.warn(f"train_{stage}.warmup={training.warmup} takes the whole schedule")

    # Batches to learn from, one to be tested on. The prior's test batch is divided like the rest.
    train_set, test_set = data.load(config, "train"), data.load(config, "test")
    options = dict(loaded, seed=config.seed, cache=run / "cache" if "dvae" in needs else None)
    part = dict(rank=team.rank, world=team.world)
    if hard:
        batches = lookalikes.batches(train_set, config, **options)
    else:
        batches = data.batches(train_set, config, stage, **options, **part)
    tests = data.batches(test_set, config, stage, **options, **(part if stage == "dalle" else {}))
    callbacks = CALLBACKS[stage](config, test_set, next(tests(0)), team, **loaded)
    evaluate, sheet = team.callbacks(*callbacks)

    # The model, its first codes spread over the data where the configuration says so.
    model = team.model or build(config, stage)
    if stage == "dvae" and config.dvae.spread_codes and team.model is None:
        some, _ = data.first(train_set, N_SPREAD)
        generator = torch.Generator().manual_seed(config.seed)
        spread_codes(model, some.float() / 255, generator)
    return fit(
        model, batches, training, run / stage, run_config=config,
        evaluate=evaluate, sheet=sheet, seed=config.seed, device=device, resume=not fresh,
        tensorboard=tensorboard, team=team, made_from=digests(run, needs) | data.version(config),
    )  # fmt: skip


Evaluate = Callable[[nn.Module, int], dict[str, float]]
Callbacks = tuple[Evaluate, Callable[[nn.Module, Path], None] | None]


def _dvae_callbacks(config: Config, test_set, batch: dict[str, Tensor], team) -> Callbacks:
    images = _test_images(test_set)

    def evaluate(model: DiscreteVAE, step: int) -> dict[str, float]:
        device = next(model.parameters()).device
        found = model.evaluate(images.to(device), step, torch.Generator(device).manual_seed(0))
        return {"bound": -found["elbo"], **found} if "elbo" in found else found

    def sheet(model: DiscreteVAE, path: Path) -> None:
        some = images[:N_SHEET].to(next(model.parameters()).device)
        plot.save(plot.show_pairs(some, model.decode(model.tokens(some))), path)

    return evaluate, sheet


def _dalle_callbacks(config: Config, test_set, batch, team, tokenizer, dvae) -> Callbacks:
    captions = [test_set.caption(i) for i in range(min(N_SHEET // 2, len(test_set)))]

    def sheet(model: DALLE, path: Path) -> None:
        text = tokenizer.encode_batch(captions, config.dalle.caption_len)
        generator = torch.Generator().manual_seed(0)
        images = dvae.decode(sample(model, text, len(captions), generator=generator))
        plot.save(plot.sample_sheet(captions, [("sample", images)], [[""]] * len(captions)), path)

    return _mean_loss(batch, config.train_dalle.accumulate, team), sheet


def _clip_callbacks(config: Config, test_set, batch, team, tokenizer, dvae=None) -> Callbacks:
    return _mean_loss(batch, 1, team), None


def _mean_loss(batch: dict[str, Tensor], parts: int, team: Alone) -> Evaluate:
    """Return what measures the loss and its metrics on a batch, in so many parts."""

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        found = Counter()
        for part in split_batch(batch, parts, next(model.parameters()).device):
            loss, metrics = team.loss(model, part, step)
            for name, value in {"loss": loss, **metrics}.items():
                found[name] += value / parts
        return dict(found)

    return evaluate


def _test_images(test_set) -> Tensor:
    """The first images of the test set, as many as fit, (N, 3, H, W) float in [0, 1]."""
    n = min(N_TEST, TEST_PIXELS // test_set[0][0][0].numel(), len(test_set))
    return torch.stack([test_set[i][0] for i in range(n)]).float() / 255


CALLBACKS = {"dvae": _dvae_callbacks, "dalle": _dalle_callbacks, "clip": _clip_callbacks}
