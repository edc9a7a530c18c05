"""Every size and every training recipe, in one table of presets.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2 and appendices A and B (the `12b` row).
"""

import dataclasses
import types
import typing
from ast import literal_eval
from collections.abc import Iterable
from dataclasses import dataclass, field

from minidalle.config_check import check_config


@dataclass(frozen=True)
class DataConfig:
    """Which captioned pictures. image_size in pixels per side."""

    name: str = "shapes"  # 'shapes' 'mnist' 'fashion_mnist' 'cifar' 'emoji' 'folder'
    folder: str = ""  # for 'folder': your own pictures
    image_size: int = 32
    n_train: int = 20_000  # pictures to draw, for the worlds that are drawn ('shapes', 'mnist')
    n_test: int = 2_000
    augment: bool = False  # the paper's random crops (listings 1 and 2)
    min_caption: int = 0  # characters; shorter captions are skipped (section 2.3)
    max_aspect: float = 0.0  # 2.0 keeps aspect ratios in [1/2, 2] (appendix C); 0 keeps all


@dataclass(frozen=True)
class TokenizerConfig:
    """Byte-pair encoding (section 2.2). dropout: share of merges skipped in training."""

    vocab_size: int = 16_384
    dropout: float = 0.1


@dataclass(frozen=True)
class DVAEConfig:
    """The discrete VAE (appendix A). Its tokens form a grid of image_size / 2**n_pools per side."""

    image_size: int = 256
    n_hid: int = 256  # width of the first encoder group; doubles in each further group
    n_blocks: int = 2  # residual blocks per group
    n_pools: int = 3  # halvings of the side; there are n_pools + 1 groups
    vocab_size: int = 8192
    n_init: int = 128  # width of a code vector
    beta: float = 6.6  # weight of the KL term, in the paper's normalisation
    beta_steps: int = 5_000
    tau: float = 1 / 16  # final temperature; starts at 1
    tau_steps: int = 150_000
    min_log_b: float | None = None  # floor on ln b, for flat drawings; None is the paper
    gain: float | None = None  # of a residual branch; None is the published 1 / layers^2
    spread_codes: bool = False  # start from codes spread over the data; see dvae.spread_codes

    @property
    def grid(self) -> int:
        """Image tokens per side."""
        return self.image_size // 2**self.n_pools


@dataclass(frozen=True)
class DALLEConfig:
    """The prior over text and image tokens (section 2.2, appendix B)."""

    text_vocab: int = 16_384
    text_len: int = 256  # text states: start-of-text and up to text_len - 1 caption tokens
    image_vocab: int = 8192
    grid: int = 32
    n_layers: int = 64
    n_heads: int = 62
    head_dim: int = 64
    kernel: int = 11  # side of the convolution mask in the last layer
    text_weight: float = 1 / 8  # the image loss weighs 1 - text_weight
    caption_dropout: float = 0.0  # share of captions emptied in training, for guidance
    residual_init: float = 1.0  # scale of the blocks' first outputs; 0 starts them as the identity
    attention: str = "auto"  # how masks are executed: 'auto' 'dense' 'gathered' 'flex'
    checkpointing: bool = False  # recompute each block's activations in the backward pass

    @property
    def width(self) -> int:
        """Width of the residual stream, d."""
        return self.n_heads * self.head_dim


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
    lr_end: float = 0.0
    warmup: int = 0  # linear from 0
    halve_at: tuple[int, ...] = ()  # instead of the cosine: halve the rate at these updates
    lr_steps: int = 0  # length of the cosine; 0 means `steps`
    fall: float = 0.0  # instead of the cosine: constant, then straight down over this last share
    muon_lr: float = 0.0  # Muon's rate for the blocks' matrices; 0 leaves them to AdamW
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0  # of the whole gradient; 0 is off
    clip_variance: float = 0.0  # of Adam's second moment; 0 is off
    ema_decay: float = 0.999
    ema_every: int = 1
    lookalikes: float = 0.0  # CLIP: share of batches whose captions differ in one attribute only
    rebuilt: float = 0.0  # CLIP: share of images that come from the dVAE
    accumulate: int = 1  # parts a batch is split into
    precision: str = "float32"  # 'float32' 'bfloat16' or 'auto', see train.autocast
    compile: bool = False  # torch.compile fuses the blocks: for a GPU, no gain on a CPU
    log_every: int = 50
    eval_every: int = 500
    save_every: int = 500
    keep: int = 2  # newest checkpoints kept


@dataclass(frozen=True)
class Config:
    """One preset: everything that `python -m minidalle` needs to know."""

    preset: str
    data: DataConfig
    tokenizer: TokenizerConfig
    dvae: DVAEConfig
    dalle: DALLEConfig
    clip: CLIPConfig
    train_dvae: TrainConfig
    train_dalle: TrainConfig
    train_clip: TrainConfig
    seed: int = field(default=0)


replace = dataclasses.replace

# Above each preset: command, hardware, measured time, result; "one thread" is of an AMD EPYC with
# avx512_bf16 that others were using too. What was not trained says so; `plan` tells its needs.
#
# toy: `make demo`; one thread; 837 s (dVAE 340, prior 310, CLIP 140); exact by the judge, one
# sample and best of 16: 90.7 % and 98.4 % for seen pairs, 82.4 % and 95.3 % for held-out pairs.
# The recipe of before, which mnist and cifar were measured with.
_SLOW_TOY = Config(
    preset="toy",
    data=DataConfig(),
    tokenizer=TokenizerConfig(vocab_size=512, dropout=0.0),  # minutes of training: nothing to spare
    dvae=DVAEConfig(
        image_size=32,
        n_hid=32,
        n_blocks=1,
        n_pools=2,
        vocab_size=512,
        n_init=64,
        beta=1.0,
        beta_steps=2000,
        tau=1 / 4,
        tau_steps=2800,
        min_log_b=0.0,
        gain=1.0,
        spread_codes=True,
    ),
    dalle=DALLEConfig(
        text_vocab=512,
        text_len=32,
        image_vocab=512,
        grid=8,
        n_layers=4,
        n_heads=4,
        head_dim=32,
        kernel=3,
    ),
    clip=CLIPConfig(
        image_size=32,
        patch_size=8,
        vision_width=96,
        vision_layers=3,
        vision_heads=3,
        vocab_size=514,
        context_length=34,
        text_width=96,
        text_layers=2,
        text_heads=3,
        embed_dim=64,
    ),
    train_dvae=TrainConfig(
        steps=7000, batch_size=16, lr=3e-3, lr_end=3e-5, warmup=100, weight_decay=1e-4,
        clip_norm=1.0, precision="auto", eval_every=1000, save_every=1000,
    ),
    train_dalle=TrainConfig(
        steps=6000, batch_size=16, lr=1.5e-3, lr_end=1e-5, warmup=100, betas=(0.9, 0.96),
        weight_decay=4.5e-2, clip_norm=4.0, clip_variance=5.0, precision="auto", eval_every=1000,
        save_every=1000,
    ),
    train_clip=TrainConfig(
        steps=800, batch_size=128, lr=2e-3, lr_end=1e-5, warmup=50, betas=(0.9, 0.98), eps=1e-6,
        weight_decay=0.1,
    ),
)  # fmt: skip

TOY = replace(
    _SLOW_TOY,
    dvae=replace(
        _SLOW_TOY.dvae, vocab_size=256, beta=0.3, beta_steps=2000, tau=1 / 4, tau_steps=4800
    ),
    dalle=replace(
        _SLOW_TOY.dalle, text_len=25, image_vocab=256, caption_dropout=0.1, residual_init=0.0
    ),
    clip=replace(
        _SLOW_TOY.clip, context_length=26, vision_heads=2, text_width=64, text_heads=2
    ),
    train_dvae=replace(_SLOW_TOY.train_dvae, steps=4800, batch_size=8),
    train_dalle=TrainConfig(
        steps=1500, batch_size=32, lr=5e-3, muon_lr=0.025, fall=0.8, warmup=50, betas=(0.9, 0.96),
        weight_decay=0.1, clip_norm=4.0, ema_decay=0.99, precision="auto", eval_every=500,
        save_every=500,
    ),
    train_clip=TrainConfig(
        steps=950, batch_size=128, lr=3e-3, muon_lr=0.02, fall=0.7, warmup=50, betas=(0.9, 0.98),
        eps=1e-6, weight_decay=0.1, ema_decay=0.99, precision="auto", lookalikes=0.7, rebuilt=0.7,
    ),
)  # fmt: skip

PAPER_DVAE_TRAINING = TrainConfig(
    steps=3_000_000,
    batch_size=512,
    lr=1e-4,
    lr_end=1.25e-6,
    lr_steps=1_200_000,
    weight_decay=1e-4,
    precision="bfloat16",
    log_every=100,
    eval_every=5_000,
    save_every=5_000,
)
PAPER_DALLE_TRAINING = TrainConfig(
    steps=430_000,
    batch_size=1024,
    lr=4.5e-4,
    warmup=5_000,
    # Five halvings by hand at plateaus; the paper does not say when, so these dates are ours.
    halve_at=(200_000, 260_000, 310_000, 350_000, 390_000),
    betas=(0.9, 0.96),
    weight_decay=4.5e-2,
    clip_norm=4.0,
    clip_variance=5.0,
    ema_decay=0.99,
    ema_every=25,
    precision="bfloat16",
    log_every=100,
    eval_every=5_000,
    save_every=1_000,
)
PAPER_CLIP_TRAINING = TrainConfig(
    steps=390_000,  # 32 epochs of 400 M pairs
    batch_size=32_768,
    lr=5e-4,
    warmup=2_000,
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.2,
    precision="bfloat16",
    log_every=100,
    eval_every=5_000,
    save_every=1_000,
)

# mnist: `python -m minidalle dvae --preset mnist` and the verbs after it; one thread; the dVAE took
# 530 s: 24.7 dB, 136 codes. The prior and CLIP were not trained to the end.
_MNIST = replace(
    _SLOW_TOY,
    preset="mnist",
    data=DataConfig("mnist", n_train=60_000, n_test=10_000),
    train_dalle=replace(_SLOW_TOY.train_dalle, steps=12_000),
    train_clip=replace(_SLOW_TOY.train_clip, steps=1500),
)
# cifar: likewise; the dVAE took 643 s: 22.7 dB, 386 codes. The rest was not
# trained: overnight on a CPU, or minutes on a GPU.
_CIFAR = replace(
    _SLOW_TOY,
    preset="cifar",
    data=DataConfig("cifar"),
    dvae=replace(_SLOW_TOY.dvae, min_log_b=-3.0, beta_steps=3000, tau_steps=4000),
    dalle=replace(_SLOW_TOY.dalle, n_layers=8, n_heads=8),
    train_dvae=replace(_SLOW_TOY.train_dvae, steps=10_000),
    train_dalle=replace(_SLOW_TOY.train_dalle, steps=30_000),
    train_clip=replace(_SLOW_TOY.train_clip, steps=5000),
)
# 12b: the paper. Not trained here; one update and one sample are planned, not measured.
_12B = Config(
    preset="12b",
    data=DataConfig("folder", image_size=256, augment=True, min_caption=5, max_aspect=2.0),
    tokenizer=TokenizerConfig(),
    dvae=DVAEConfig(),
    dalle=DALLEConfig(checkpointing=True),
    clip=CLIPConfig(vocab_size=16_386, context_length=257),
    train_dvae=PAPER_DVAE_TRAINING,
    train_dalle=PAPER_DALLE_TRAINING,
    train_clip=PAPER_CLIP_TRAINING,
)
# base: one machine of 8 GPUs. Not trained here.
_BASE = replace(
    _12B,
    preset="base",
    dalle=replace(_12B.dalle, text_len=128, n_layers=24, n_heads=32),
    clip=replace(_12B.clip, context_length=129),
    train_dvae=replace(PAPER_DVAE_TRAINING, steps=300_000, batch_size=128),
    train_dalle=replace(PAPER_DALLE_TRAINING, steps=100_000, batch_size=512, halve_at=()),
    train_clip=replace(PAPER_CLIP_TRAINING, steps=100_000, batch_size=4096),
)
# small: one GPU. Not trained here.
_SMALL = replace(
    _BASE,
    preset="small",
    data=replace(_12B.data, image_size=128),
    dvae=replace(_12B.dvae, image_size=128, n_hid=128, vocab_size=4096),
    dalle=replace(
        _BASE.dalle,
        image_vocab=4096,
        text_len=64,
        grid=16,
        kernel=5,
        n_layers=12,
        n_heads=12,
        checkpointing=False,
    ),
    clip=replace(
        _12B.clip,
        image_size=128,
        patch_size=16,
        vision_width=512,
        vision_heads=8,
        context_length=65,
    ),
    train_dvae=replace(PAPER_DVAE_TRAINING, steps=100_000, batch_size=64),
    train_dalle=replace(_BASE.train_dalle, batch_size=256),
    train_clip=replace(_BASE.train_clip, batch_size=1024),
)

PRESETS = {c.preset: c for c in (TOY, _MNIST, _CIFAR, _SMALL, _BASE, _12B)}


def get_config(name: str, overrides: Iterable[str] = ()) -> Config:
    """Return preset `name` with overrides such as 'dalle.n_layers=2' applied.

    Values are read as the field's type; 'none' and tuples like '(1, 2)' are understood.
    Raises ValueError for an unknown preset, section or field, a value of the wrong type, or
    sizes that do not fit together.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    config = PRESETS[name]
    for text in overrides:
        config = _override(config, text)
    check_config(config)
    return config


def _override(config: Config, text: str) -> Config:
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"an override looks like section.field=value, got {text!r}")
    section, dot, name = path.strip().partition(".")
    if not dot:
        return replace(config, **{section: _read(config, section, value, text)})
    part = getattr(config, section, None)
    if not dataclasses.is_dataclass(part):
        sections = [f.name for f in dataclasses.fields(config) if f.name not in ("preset", "seed")]
        raise ValueError(f"unknown section in {text!r}; choose from {', '.join(sections)}")
    return replace(config, **{section: replace(part, **{name: _read(part, name, value, text)})})


def _read(part: object, name: str, value: str, text: str) -> object:
    """Parse `value` as the type of field `name` of dataclass `part`."""
    kinds = typing.get_type_hints(type(part))
    if name not in kinds or name == "preset" or dataclasses.is_dataclass(kinds[name]):
        names = [n for n, k in kinds.items() if n != "preset" and not dataclasses.is_dataclass(k)]
        raise ValueError(f"unknown field in {text!r}; choose from {', '.join(names)}")
    value, kind = value.strip(), kinds[name]
    try:
        return _parse(value, kind)
    except (ValueError, SyntaxError, TypeError):
        wanted = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{text!r}: {value!r} is not a valid {wanted}") from None


def _parse(value: str, kind: type) -> object:
    if kind is str:
        return value
    if isinstance(kind, types.UnionType):  # X | None
        inner = next(k for k in typing.get_args(kind) if k is not type(None))
        return None if value.lower() == "none" else _parse(value, inner)
    if kind is bool:
        if value.lower() not in ("true", "false", "1", "0"):
            raise ValueError
        return value.lower() in ("true", "1")
    if typing.get_origin(kind) is tuple:
        items = literal_eval(value)
        inner = typing.get_args(kind)[0]
        if not isinstance(items, tuple) or not all(isinstance(i, int | float) for i in items):
            raise ValueError
        return tuple(inner(i) for i in items)
    number = kind(value.replace("_", ""))
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError
    return number
