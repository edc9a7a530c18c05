"""Every size, every recipe and every range, in frozen dataclasses; one way in for all values.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2 and appendices A and B (the `12b` row).
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from minidalle.fields import Typed, between, one_of, read_fields
from minidalle.presets import TABLE

replace = dataclasses.replace
STAGES = ("tokenizer", "dvae", "dalle", "clip")  # of a run, in their order


@dataclass(frozen=True)
class DataConfig:
    """Which captioned images. image_size in pixels per side."""

    name: str = one_of("shapes", "scenes", "mnist", "fashion_mnist", "cifar", "emoji", "folder")
    folder: str = ""  # for 'folder': your own images
    image_size: int = 32
    n_train: int = 20_000  # images to draw, for the worlds that are drawn ('shapes', 'mnist')
    n_test: int = 2_000
    augment: bool = False  # the paper's random crops (listings 1 and 2)
    min_caption: int = between(0, 0)  # characters; shorter captions are skipped (section 2.3)
    max_aspect: float = between(0.0, 0)  # 2.0 keeps those in [1/2, 2] (appendix C); 0 keeps all


@dataclass(frozen=True)
class TokenizerConfig:
    """Byte-pair encoding (section 2.2). dropout: share of merges skipped in training."""

    vocab_size: int = between(16_384, 256)  # at least the bytes
    dropout: float = between(0.1, 0, 1)


@dataclass(frozen=True)
class CodebookConfig:
    """What every image tokenizer has: a grid of image_size / 2**n_pools tokens per side."""

    image_size: int = 256
    n_pools: int = between(3, 0, 16)  # halvings of the side; there are n_pools + 1 groups
    vocab_size: int = 8192

    @property
    def grid(self) -> int:
        """Image tokens per side."""
        return self.image_size // 2**self.n_pools


@dataclass(frozen=True)
class DVAEConfig(CodebookConfig):
    """The discrete VAE (appendix A)."""

    n_hid: int = 256  # width of the first encoder group; doubles in each further group
    n_blocks: int = 2  # residual blocks per group
    n_init: int = 128  # width of a code vector
    beta: float = between(6.6, 0)  # weight of the KL term, in the paper's normalisation
    beta_steps: int = 5_000
    tau: float = 1 / 16  # final temperature; starts at 1
    tau_steps: int = 150_000
    hard: bool = False  # train on drawn codes, straight-through, instead of relaxed ones
    min_log_b: float | None = between(None, -math.inf)  # floor on ln b; None is the paper
    gain: float | None = None  # of a residual branch; None is the published 1 / layers^2
    spread_codes: bool = False  # start from codes spread over the data; see training/spread.py


@dataclass(frozen=True)
class VQVAEConfig(CodebookConfig):
    """The VQ-VAE of codebooks/vqvae.py, with the dVAE's encoder and decoder."""

    n_hid: int = 256
    n_blocks: int = 2
    n_init: int = 128  # width of a code vector
    gain: float | None = None
    likelihood: str = one_of("squares", "laplace")  # what a decoded pixel is measured by
    min_log_b: float | None = between(None, -math.inf)  # for 'laplace', as in the dVAE
    commitment: float = between(0.25, 0)  # how strongly features keep to their codes
    averages: bool = True  # codes are averages of their features; by gradient lr must be lower
    decay: float = between(0.99, 0, 0.9999)  # of these averages, per update
    revive: float = between(0.05, 0, 1)  # of an even use: a code used less is dead; 0 revives none
    spread_codes: bool = False  # start from k-means of features


@dataclass(frozen=True)
class VQGANConfig(CodebookConfig):
    """The VQGAN of codebooks/vqgan.py; f16 as published but for n_pools=4, vocab_size=1024."""

    n_hid: int = 128  # width of the full resolution
    widths: tuple[int, ...] = ()  # of the levels, times n_hid; () doubles at every second one
    n_blocks: int = 2  # residual blocks per level; the decoder has one more
    n_init: int = 256  # width of a code vector
    gumbel: bool = False  # a token is the largest logit, not the nearest vector
    signed: bool = True  # the networks see pixels in [-1, 1], not [0, 1]
    commitment: float = between(0.25, 0)  # this and the next three as in the VQ-VAE
    averages: bool = False
    decay: float = between(0.99, 0, 0.9999)
    revive: float = between(0.0, 0, 1)
    spread_codes: bool = False
    lpips: str = ""  # folder with the published weights of this perceptual loss; '': without it
    disc_weight: float = between(0.0, 0)  # of the discriminator, 0.8 as published; 0: there is none
    disc_start: int = between(0, 0)  # updates before it plays
    disc_layers: int = 3  # of its convolutions halve the sides; at 32 pixels 1 or 2
    disc_width: int = 64


@dataclass(frozen=True)
class PaletteConfig(CodebookConfig):
    """The palette of codebooks/palette.py: K colours of squares of 2**n_pools pixels a side."""

    spread_codes = True  # always: by k-means


@dataclass(frozen=True)
class DALLEConfig:
    """The prior over text and image tokens (section 2.2, appendix B)."""

    text_vocab: int = 16_384
    text_len: int = between(256, 2)  # text states: start-of-text and text_len - 1 tokens
    image_vocab: int = 8192
    grid: int = 32
    n_layers: int = 64
    n_heads: int = 62
    head_dim: int = 64
    kernel: int = 11  # side of the convolution mask in the last layer
    text_weight: float = between(1 / 8, 0, 1)  # the image loss weighs 1 - text_weight
    caption_dropout: float = between(0.0, 0, 1)  # share of captions emptied, for guidance
    residual_init: float = between(1.0, 0)  # scale of the blocks' first outputs; 0: the identity
    attention: str = one_of("auto", "dense", "gathered", "flex")  # how masks are executed
    checkpointing: bool = False  # recompute each block's activations in the backward pass

    @property
    def width(self) -> int:
        """Width of the residual stream, d."""
        return self.n_heads * self.head_dim

    @property
    def caption_len(self) -> int:
        """The most tokens of a caption."""
        return self.text_len - 1


@dataclass(frozen=True)
class MiniConfig:
    """DALL-E mini in DALLE's place (priors/mini.py); the defaults are the published mini."""

    text_vocab: int = 50_264
    text_len: int = between(64, 3)  # positions: start, text_len - 2 caption tokens, end
    image_vocab: int = 16_384
    spare_rows: int = 1  # of the image table and head, behind the codes; the first is the start
    grid: int = 16
    n_layers: int = 12  # of the encoder, and as many of the decoder
    n_heads: int = 16
    head_dim: int = 64
    glu_width: int = 2730
    caption_dropout: float = between(0.0, 0, 1)  # as DALLE's
    denoise_steps: int = between(0, 0)  # first updates: the encoder rebuilds hidden caption tokens
    residual_init: float = between(1.0, 0)  # first gain of the norms behind attention
    width = DALLEConfig.width

    @property
    def caption_len(self) -> int:
        """The most tokens of a caption."""
        return self.text_len - 2


@dataclass(frozen=True)
class CLIPConfig:
    """Two towers (Radford et al. 2021). vocab_size counts start- and end-of-text, its last two."""

    image_size: int = 224
    patch_size: int = 32
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vocab_size: int = 49_408
    context_length: int = 77
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    embed_dim: int = 512


@dataclass(frozen=True)
class TrainConfig:
    """How one stage is trained. All durations in updates."""

    steps: int
    batch_size: int  # examples per update, over all processes
    lr: float
    lr_end: float = between(0.0, 0)
    warmup: int = between(0, 0)  # linear from 0
    halve_at: tuple[int, ...] = ()  # instead of the cosine: halve the rate at these updates
    lr_steps: int = between(0, 0)  # length of the cosine; 0 means `steps`
    fall: float = between(0.0, 0, 1)  # instead of the cosine: straight down over this last share
    muon_lr: float = between(0.0, 0)  # Muon's rate for the blocks' matrices; 0: AdamW for all
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = between(0.0, 0)
    clip_norm: float = between(0.0, 0)  # of the whole gradient; 0 is off
    clip_variance: float = between(0.0, 0)  # of Adam's second moment; 0 is off
    ema_decay: float = between(0.999, 0, 1)
    ema_every: int = 1
    lookalikes: float = between(0.0, 0, 1)  # CLIP: batches whose captions differ in one attribute
    draw_tokens: bool = False  # prior: tokens drawn from q at each update (footnote 6)
    rebuilt: float = between(0.0, 0, 1)  # CLIP: images that come from the dVAE
    accumulate: int = 1  # parts a batch is split into
    precision: str = one_of("float32", "bfloat16", "auto")  # see training.run.autocast
    compile: bool = False  # torch.compile fuses the blocks: for a GPU, no gain on a CPU
    log_every: int = 50
    eval_every: int = 500
    save_every: int = 500
    keep: int = between(2, 0)  # newest checkpoints kept


@dataclass(frozen=True)
class Config:
    """One preset: everything that `python -m minidalle` needs to know."""

    preset: str
    data: DataConfig
    tokenizer: TokenizerConfig
    dvae: CodebookConfig  # of the class that `codebook` names
    dalle: DALLEConfig | MiniConfig  # of the class that `prior` names
    clip: CLIPConfig
    train_dvae: TrainConfig
    train_dalle: TrainConfig
    train_clip: TrainConfig
    codebook: str = one_of("dvae", "vqvae", "vqgan", "palette")  # what turns images into tokens
    prior: str = one_of("dalle", "mini")  # what predicts tokens from a caption
    seed: int = between(0, 0)


CODEBOOKS = dict(dvae=DVAEConfig, vqvae=VQVAEConfig, vqgan=VQGANConfig, palette=PaletteConfig)
# Fields that name the class of a section: the section, and its classes by name.
CHOICES = {
    "codebook": ("dvae", CODEBOOKS),
    "prior": ("dalle", {"dalle": DALLEConfig, "mini": MiniConfig}),
}


# ---------------------------------------------------------------- schedules


def half_cosine(start: float, end: float, step: int, steps: int) -> float:
    """Go from `start` at update 0 to `end` at update `steps` along half a cosine, then stay.

    v(t) = end + (start - end) (1 + cos(pi min(t / steps, 1))) / 2, with t = step.
    """
    part = min(max(step / steps, 0.0), 1.0) if steps > 0 else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


# ---------------------------------------------------------------- overrides and JSON


def get_config(name: str, overrides: Iterable[str] = ()) -> Config:
    """Return preset `name` with overrides such as 'dalle.n_layers=2' applied.

    Values are read as the field's type; 'none' and tuples like '(1, 2)' are understood.
    Raises ValueError for an unknown preset, section or field, a value of the wrong type, or
    sizes that do not fit together.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    values = dataclasses.asdict(PRESETS[name])
    for text in sorted(overrides, key=lambda text: text.split("=")[0] not in CHOICES):
        path, equals, value = text.partition("=")
        if not equals or path.strip() == "preset":
            raise ValueError(f"an override looks like section.field=value, got {text!r}")
        *sections, last = path.strip().split(".")
        place = values
        for section in sections:
            place = place.get(section)
            if not isinstance(place, dict):
                known = [k for k, v in values.items() if isinstance(v, dict)]
                raise ValueError(f"unknown section in {text!r}; choose from {', '.join(known)}")
        place[last] = Typed(value.strip())
        if not sections:
            _choose(values, last)
    return from_dict(values)


def _choose(values: dict, choice: str) -> None:
    """Where a choice of class was made, keep of its section what the chosen class has, too."""
    section, classes = CHOICES.get(choice, ("", {}))
    if values[choice] in classes:
        known = {f.name for f in dataclasses.fields(classes[values[choice]])}
        values[section] = {k: v for k, v in values[section].items() if k in known}


def to_json(config: Config) -> str:
    """Return a configuration as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Rebuild a configuration from `to_json`; errors as `from_dict`."""
    try:
        return from_dict(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the configuration is not JSON: {error}") from None


def from_dict(values: dict) -> Config:
    """Build a configuration from nested dicts of plain or `Typed` values, and check it.

    Raises ValueError naming the first field that is unknown, missing, of the wrong type or out of
    its range, or the sizes that do not fit together.
    """
    config = read_fields(Config, values, CHOICES)
    _check_sizes(config)
    return config


def _check_sizes(c: Config) -> None:
    """Raise ValueError, naming the fields, where the sizes of a configuration do not fit."""
    trainings = [(s, getattr(c, s)) for s in ("train_dvae", "train_dalle", "train_clip")]
    multiples = [
        ("dvae.image_size", c.dvae.image_size, "2**dvae.n_pools", 2**c.dvae.n_pools),
        ("clip.vision_width", c.clip.vision_width, "clip.vision_heads", c.clip.vision_heads),
        ("clip.text_width", c.clip.text_width, "clip.text_heads", c.clip.text_heads),
        ("clip.image_size", c.clip.image_size, "clip.patch_size", c.clip.patch_size),
        *((f"{n}.batch_size", t.batch_size, f"{n}.accumulate", t.accumulate) for n, t in trainings),
    ]
    equals = [
        ("data.image_size", c.data.image_size, "dvae.image_size", c.dvae.image_size),
        ("dalle.grid", c.dalle.grid, "dvae.image_size / 2**dvae.n_pools", c.dvae.grid),
        ("dalle.image_vocab", c.dalle.image_vocab, "dvae.vocab_size", c.dvae.vocab_size),
        ("dalle.text_vocab", c.dalle.text_vocab, "tokenizer.vocab_size", c.tokenizer.vocab_size),
    ]
    if c.data.name != "folder":  # a released CLIP may have a size of its own
        equals.append(("clip.image_size", c.clip.image_size, "data.image_size", c.data.image_size))
    least = [
        ("clip.vocab_size", c.clip.vocab_size, "tokenizer.vocab_size", c.tokenizer.vocab_size + 2),
        ("clip.context_length", c.clip.context_length, "dalle", c.dalle.caption_len + 2),
    ]
    for name, value, other, part in multiples:
        if value % part:
            raise ValueError(f"{name}={value} is not a multiple of {other}={part}")
    for name, value, other, wanted in equals:
        if value != wanted:
            raise ValueError(f"{name}={value} must equal {other}={wanted}")
    for name, value, other, wanted in least:
        if value < wanted:
            raise ValueError(f"{name}={value} must be at least {wanted}, for {other}")
    for name, t in trainings:
        if not all(0 <= b < 1 for b in t.betas) or any(step < 0 for step in t.halve_at):
            raise ValueError(f"{name}: {t.betas=} must lie in [0, 1), {t.halve_at=} not below 0")
    if c.train_clip.accumulate > 1:  # a part would see only its own negatives
        raise ValueError(f"{c.train_clip.accumulate=} must be 1: the loss compares the whole batch")
    if getattr(c.dalle, "kernel", 1) % 2 == 0:
        raise ValueError(f"dalle.kernel={c.dalle.kernel} must be odd")


def _preset(name: str) -> dict:
    """Return the fields of a preset, those of its base included, as nested dicts."""
    base, changes = TABLE[name]
    values = _preset(base) if base else {}
    for choice in CHOICES.keys() & changes:
        values[choice] = changes[choice]
        _choose(values, choice)
    sections = {k: values.get(k, {}) | new for k, new in changes.items() if k not in CHOICES}
    return values | sections


PRESETS = {name: from_dict(_preset(name) | {"preset": name}) for name in TABLE}
