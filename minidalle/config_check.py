"""Do the sizes of a configuration fit together, and does every value mean something?

Source: the shapes that each model demands of its inputs.
"""

import dataclasses
import types


def check_config(config) -> None:
    """Raise ValueError, naming the fields, where a config.Config cannot be meant."""
    c = config
    for section in dataclasses.fields(c):
        part = getattr(c, section.name)
        if dataclasses.is_dataclass(part):
            _check_ranges(section.name, part)
            _check_choices(section.name, part)
    if c.dvae.image_size % 2**c.dvae.n_pools:
        raise ValueError(
            f"dvae.image_size={c.dvae.image_size} is not a multiple of 2**dvae.n_pools="
            f"{2**c.dvae.n_pools}"
        )
    if c.seed < 0:
        raise ValueError(f"seed={c.seed} must not be negative")
    pairs = {
        "data.image_size": (c.data.image_size, "dvae.image_size", c.dvae.image_size),
        "dalle.grid": (c.dalle.grid, "dvae.image_size / 2**dvae.n_pools", c.dvae.grid),
        "dalle.image_vocab": (c.dalle.image_vocab, "dvae.vocab_size", c.dvae.vocab_size),
        "dalle.text_vocab": (c.dalle.text_vocab, "tokenizer.vocab_size", c.tokenizer.vocab_size),
        "clip.image_size": (c.clip.image_size, "data.image_size", c.data.image_size),
    }
    for name, (value, other, wanted) in pairs.items():
        if value != wanted and not (name == "clip.image_size" and c.data.name == "folder"):
            raise ValueError(f"{name}={value} must equal {other}={wanted}")
    _check_clip(c)


def _check_clip(c) -> None:
    """Raise ValueError where the two towers do not fit the pictures and captions."""
    clip = c.clip
    for whole, part in (
        ("vision_width", "vision_heads"), ("text_width", "text_heads"), ("image_size", "patch_size")
    ):  # fmt: skip
        if getattr(clip, whole) % getattr(clip, part):
            raise ValueError(
                f"clip.{whole}={getattr(clip, whole)} is not a multiple of "
                f"clip.{part}={getattr(clip, part)}"
            )
    least = {
        "vocab_size": ("tokenizer.vocab_size", c.tokenizer.vocab_size + 2),
        "context_length": ("dalle.text_len", c.dalle.text_len + 1),
    }
    for name, (other, value) in least.items():
        if getattr(clip, name) < value:
            raise ValueError(
                f"clip.{name}={getattr(clip, name)} must be at least {value}, for {other}"
            )


CHOICES = {
    ("data", "name"): ("shapes", "mnist", "fashion_mnist", "cifar", "emoji", "folder"),
    ("dalle", "attention"): ("auto", "dense", "gathered", "flex"),
    ("train", "precision"): ("float32", "bfloat16", "auto"),
}


def _check_choices(section: str, part: object) -> None:
    """Raise ValueError for a value that is of the right type and still means nothing."""
    for (home, name), choices in CHOICES.items():
        value = getattr(part, name, None)
        if section.startswith(home) and value not in choices:
            names = ", ".join(choices)
            raise ValueError(f"{section}.{name}={value!r} is unknown; choose from {names}")
    if section == "tokenizer" and part.vocab_size < 256:
        raise ValueError(f"tokenizer.vocab_size={part.vocab_size} must be at least 256, the bytes")
    if section == "dvae" and part.n_pools > 16:
        raise ValueError(f"dvae.n_pools={part.n_pools} must be at most 16")
    if section == "dalle" and part.kernel % 2 == 0:
        raise ValueError(f"dalle.kernel={part.kernel} must be odd")
    if section.startswith("train"):
        if len(part.betas) != 2 or not all(0 <= b < 1 for b in part.betas):
            raise ValueError(f"{section}.betas={part.betas} must be two numbers in [0, 1)")
        if part.batch_size % part.accumulate:
            raise ValueError(
                f"{section}.batch_size={part.batch_size} is not a multiple of "
                f"{section}.accumulate={part.accumulate}"
            )
        if any(step < 0 for step in part.halve_at):
            raise ValueError(f"{section}.halve_at={part.halve_at} must not hold negative updates")


def _check_ranges(section: str, part: object) -> None:
    may_be_zero = {
        "data": {"min_caption", "max_aspect"},
        "tokenizer": {"dropout"},
        "dvae": {"beta", "n_pools", "min_log_b"},
        "dalle": {"caption_dropout", "text_weight", "residual_init"},
    }.get(section, {"lr_end", "warmup", "lr_steps", "weight_decay", "clip_norm", "clip_variance",
                    "ema_decay", "keep", "fall", "muon_lr",
                    "lookalikes", "rebuilt"})  # fmt: skip
    for name, value in dataclasses.asdict(part).items():
        if name == "min_log_b" or isinstance(value, str | bool | tuple | types.NoneType):
            continue
        if value < 0 or (value == 0 and name not in may_be_zero):
            raise ValueError(f"{section}.{name}={value} must be positive")
    for name in (
        "dropout",
        "caption_dropout",
        "text_weight",
        "ema_decay",
        "fall",
        "lookalikes",
        "rebuilt",
    ):
        if getattr(part, name, 0) > 1:
            raise ValueError(f"{section}.{name}={getattr(part, name)} must be at most 1")
