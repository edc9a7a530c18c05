"""What does an image show? A small classifier reads its attributes: shape, colour, digit, class.

N images, S side in pixels, F features, A answers of all attributes together. The judge never sees
CLIP, the dVAE or the prior: it learns from true images and their attributes alone, held-out pairs
included where they can be drawn, so it can mark images of every pair.
Source: ours; the task is that of section 3.1 of Ramesh et al. 2021, where people were the judges.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minidalle import data
from minidalle.config import Config, replace
from minidalle.data import digits, scenes, shapes
from minidalle.data.cropping import resize_all
from minidalle.data.streams import Stream
from minidalle.files import load_tensors, save_model
from minidalle.stages import SHIPPED
from minidalle.train import autocast

WIDTHS = (32, 48, 64, 64)  # channels; every stage after the first halves the side
N_FEATURES = 96
N_TRUE = 120_000  # true images that a judge learns from, at most
# How each data set's judge is trained; those of other data sets as the one of digits.
REAL = dict(blocks=1, precision="auto")
PHOTOS = dict(batch_size=256, lr=4e-3, weight_decay=0.05, widths=(24, 48, 96, 128), flip=True,
              rough=0.2, smooth=0.1, **REAL)  # fmt: skip
RECIPES = {
    "shapes": dict(steps=2500),
    "scenes": dict(steps=4000, widths=(32, 64, 96, 96), precision="auto"),
    "mnist": dict(steps=8000, lr=3e-3, widths=(16, 32, 64, 96), rough=0.75, **REAL),
    "fashion_mnist": dict(steps=2600, **PHOTOS),
    "cifar": dict(steps=2200, **PHOTOS),
}


class Judge(nn.Module):
    """A convolution for each of four widths, one hidden layer, one linear head per attribute.

    values maps an attribute's name to its possible answers, in the order of the head's outputs.
    blocks: for what was not drawn by a program, more convolutions after each halving, all with
    batch norms; only then are sides halved by a maximum.
    """

    def __init__(
        self,
        values: dict[str, tuple[str, ...]],
        image_size: int = 32,
        widths: Sequence[int] = WIDTHS,
        blocks: int = 0,
    ):
        super().__init__()
        if image_size % 8:
            raise ValueError(f"{image_size=} is not a multiple of 8")
        self.values = {name: tuple(answers) for name, answers in values.items()}
        self.image_size, self.widths, self.n_blocks = image_size, tuple(widths), blocks
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 3, stride=1 if i == 0 or blocks else 2, padding=1)
            for i, (n_in, n_out) in enumerate(zip((3, *widths[:-1]), widths, strict=True))
        )
        self.blocks = nn.ModuleList(Block(width, blocks) for width in widths[1:] if blocks)
        self.hidden = nn.Linear(widths[-1] * (image_size // 8) ** 2, N_FEATURES)
        self.head = nn.Linear(N_FEATURES, sum(len(a) for a in self.values.values()))
        for layer in (*self.convs, self.hidden):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def features(self, images: Tensor) -> Tensor:
        """Return (N, F): the layer before the heads, for the Fréchet distance and the nearest.

        images (N, 3, S, S) float in [0, 1]. Raises ValueError for another shape or for integers.
        """
        want = (3, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != want or not images.is_floating_point():
            raise ValueError(
                f"images must be float (N, {', '.join(map(str, want))}), "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        first, *others = self.convs
        x = F.relu(first(2 * images - 1))
        for i, conv in enumerate(others):  # each (N, width, S / 2**i, S / 2**i)
            x = self.blocks[i](F.max_pool2d(conv(x), 2)) if self.n_blocks else F.relu(conv(x))
        return F.relu(self.hidden(x.flatten(1)))  # (N, F)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of each attribute, (N, answers)."""
        logits = self.head(self.features(images))  # (N, A)
        parts = logits.split([len(a) for a in self.values.values()], dim=1)
        return dict(zip(self.values, parts, strict=True))

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 256) -> dict[str, list[str]]:
        """Name what images show: the likeliest answer of each attribute, one an image.

        images (N, 3, S, S), uint8 or float in [0, 1].
        """
        found = {name: [] for name in self.values}
        for part in images.split(batch_size):
            for name, logits in self(as_float(part)).items():
                found[name] += [self.values[name][i] for i in logits.argmax(1).tolist()]
        return found

    @torch.no_grad()
    def all_features(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """As `features`, of many images, uint8 or float."""
        return torch.cat([self.features(as_float(part)) for part in images.split(batch_size)])

    def save(self, folder: str | Path) -> None:
        """Write folder/model.safetensors, in 16-bit, and folder/config.json."""
        config = dict(image_size=self.image_size, widths=self.widths, blocks=self.n_blocks)
        weights = {k: v.half() for k, v in self.state_dict().items() if v.is_floating_point()}
        save_model(folder, weights, json.dumps(config | {"values": self.values}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Judge":
        """Read what `save` wrote. Raises ValueError when the folder holds no judge."""
        folder = Path(folder)
        missing = [n for n in ("model.safetensors", "config.json") if not (folder / n).is_file()]
        if missing:
            raise ValueError(f"no judge in {folder}: {' and '.join(missing)} missing")
        judge = cls(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        weights = load_tensors(folder / "model.safetensors")[0]
        counts = {k: v for k, v in judge.state_dict().items() if not v.is_floating_point()}
        judge.load_state_dict(counts | weights)  # copies: float16 becomes float32
        return judge.eval()


class Block(nn.Sequential):
    """Normalise and bend, then n times convolve, normalise and bend."""

    def __init__(self, width: int, n: int):
        layers = [nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(n):
            conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers)


def as_float(images: Tensor) -> Tensor:
    """Images as float in [0, 1], whether they were or were uint8."""
    return images / 255 if images.dtype == torch.uint8 else images


def find_judge(config: Config, run: str | Path) -> Judge | None:
    """Return the judge of a configuration's data set: the run's, the shipped one, or a new one.

    A new one learns from the training images and is kept in run/judge. None where the images have
    no attributes to read.
    """
    name, own = config.data.name, Path(run) / "judge"
    shipped = SHIPPED / ("toy" if name == "shapes" else name) / "judge"
    for folder in (own, shipped):
        if (folder / "model.safetensors").is_file():
            judge = Judge.load(folder)
            if judge.image_size == config.data.image_size:
                return judge
    judge = make_judge(config)
    if judge is not None:
        judge.save(own)
    return judge


def make_judge(config: Config, seed: int = 0) -> Judge | None:
    """Train a judge on the true images of a data set, with a bar; None without attributes."""
    images, attributes = true_images(config)
    if not attributes:
        return None
    recipe = RECIPES.get(config.data.name, RECIPES["mnist"])
    with tqdm(total=recipe["steps"], desc="judge", disable=None) as bar:
        return train_judge(
            images, attributes, seed=seed, progress=lambda *_: bar.update(), **recipe
        )


def true_images(config: Config) -> tuple[Tensor | None, list[dict[str, str]]]:
    """Return images (N, 3, S, S) uint8 to learn from and their attributes, if they have any.

    Held-out pairs are among them where they can be drawn, of training handwriting alone.
    """
    name, seed = config.data.name, config.seed
    digit = name in ("mnist", "fashion_mnist")  # each is seen in two scenes
    n_drawn = min((1 + digit) * config.data.n_train, N_TRUE)
    if name == "shapes":
        drawn = true_scenes(n_drawn, seed)
        return drawn.images, drawn.attributes
    dataset = data.load(replace(config, data=replace(config.data, n_train=n_drawn)), "train")
    if isinstance(dataset, Stream) or dataset.attributes(0) is None:
        return None, []
    n = min(len(dataset), N_TRUE)
    images, attributes = data.first(dataset, n)[0], [dataset.attributes(i) for i in range(n)]
    if name == "scenes":
        apart = [scenes.draw(n // 8, seed, split) for split in ("held_out", "bindings")]
        images = torch.cat([images, *(some.images for some in apart)])
        attributes += [a for some in apart for a in some.attributes]
    if digit:
        more = digits.draw(digits.load_things(name, "train"), n // 8, seed, "held_out")
        images = torch.cat([images, resize_all(more.images, config.data.image_size)])
        attributes += [more.attributes(i) for i in range(len(more))]
    return images, attributes


def true_scenes(n: int, seed: int) -> shapes.Scenes:
    """Draw n scenes of the toy world in which every (shape, colour) pair is equally likely."""
    pairs = len(shapes.SHAPES) * len(shapes.COLOURS)
    n_held_out = max(1, round(n * len(shapes.HELD_OUT) / pairs))
    seen = shapes.draw(n - n_held_out, seed, "train")
    held_out = shapes.draw(n_held_out, seed, "held_out")
    return shapes.Scenes(
        torch.cat([seen.images, held_out.images]),
        seen.captions + held_out.captions,
        seen.attributes + held_out.attributes,
    )


def roughen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bend, blur and dim images a little, and add noise, as a good reconstruction might.

    images (N, 3, S, S) in [0, 1]. Outlines are bent by up to a pixel or so; three images in four
    are blurred, by up to 1 pixel; noise has a standard deviation of up to 0.06, and each channel
    shifts by up to 0.04. What a person could not read any more is never called readable: training
    goes no further than this.
    """
    images = bend(images, 1.2 * torch.rand(len(images), generator=generator), generator)
    u = torch.rand(len(images), 6, 1, 1, 1, generator=generator)
    blurred = (u[:, 0] / 0.75).clamp(max=1) * (u[:, 1] < 0.75)  # weight of the blurred copy
    x = images + blurred * (blur3(blur3(images)) - images)
    x = x + 0.06 * u[:, 2] * torch.randn(x.shape, generator=generator)
    x = x + 0.08 * (u[:, 3:, 0] - 0.5)  # one shift a channel
    return x.clamp(0, 1)


def move(images: Tensor, generator: torch.Generator, by: int = 4) -> Tensor:
    """Mirror half of the images (N, 3, S, S), and move each by up to `by` pixels."""
    n, _, height, width = images.shape
    mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    x = torch.where(mirrored, images.flip(3), images)
    x = F.pad(x.float(), (by,) * 4, mode="replicate").to(images.dtype)
    corner = torch.randint(2 * by + 1, (n, 2), generator=generator)
    rows = corner[:, 0, None] + torch.arange(height)  # (N, S)
    columns = corner[:, 1, None] + torch.arange(width)
    at = torch.arange(n)[:, None, None]
    x = x.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]]  # (N, S, S, 3)
    return x.permute(0, 3, 1, 2)


def bend(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Move the pixels of images (N, 3, S, S) along a smooth random field.

    Every fourth pixel along each axis moves by a normal random amount, strength (N,) pixels its
    standard deviation; those between move by what is interpolated.
    """
    n, side = len(images), images.shape[-1]
    knots = torch.randn(n, 2, side // 4 + 1, side // 4 + 1, generator=generator)
    knots = knots * strength[:, None, None, None]
    move = F.interpolate(knots, (side, side), mode="bilinear", align_corners=True)  # (N, 2, S, S)
    at = (2 * torch.arange(side) + 1) / side - 1  # centres of pixels in [-1, 1]
    y, x = torch.meshgrid(at, at, indexing="ij")
    grid = torch.stack([x, y], -1) + move.permute(0, 2, 3, 1) * 2 / side  # (N, S, S, 2)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def blur3(images: Tensor) -> Tensor:
    """Blur by the binomial window (1, 2, 1) / 4 along both axes: a radius of about 0.7 pixels."""
    window = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(window, window).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def train_judge(
    images: Tensor,
    attributes: Sequence[dict[str, str]],
    steps: int = 1200,
    batch_size: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
    flip: bool = False,
    rough: float = 1.0,
    smooth: float = 0.0,
    weight_decay: float = 1e-3,
    precision: str = "float32",
    **network,
) -> Judge:
    """Teach a judge from true images, roughened afresh in every update.

    images uint8 (N, 3, S, S); attributes has one dict for each, all with the same names.
    progress(step, loss) is called after every update. flip: photographs may be mirrored and moved
    by up to 4 pixels, drawings whose attributes are places may not. rough: share of the images that
    are roughened. smooth: share of a label's weight that is spread over all answers. precision as
    in config.py. network: widths and blocks, as `Judge`. Same seed, same judge.
    """
    names = list(attributes[0])
    values = {name: tuple(sorted({a[name] for a in attributes})) for name in names}
    rows = [[values[k].index(a[k]) for k in names] for a in attributes]
    target = torch.tensor(rows)  # (N, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(values, images.shape[-1], **network).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(judge.parameters(), lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        pick = torch.randint(len(images), (batch_size,), generator=generator)
        some = move(images[pick], generator) if flip else images[pick]
        some, n_rough = as_float(some), round(rough * batch_size)
        some = torch.cat([roughen(some[:n_rough], generator), some[n_rough:]])
        with autocast(precision, "cpu"):
            logits = judge(some.to(memory_format=torch.channels_last))
        errors = [
            F.cross_entropy(logits[k].float(), target[pick, i], label_smoothing=smooth)
            for i, k in enumerate(names)
        ]
        loss = sum(errors)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress:
            progress(step, loss.item())
    return judge.eval()
