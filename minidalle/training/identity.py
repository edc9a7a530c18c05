"""What must stay the same while a run goes on, and what may change."""

import dataclasses
import json

from minidalle.config import Config, TrainConfig

# The sections of a configuration on which the result of a stage depends.
SECTIONS = {
    "train_dvae": ("data", "dvae"),
    "train_dalle": ("data", "tokenizer", "dvae", "dalle"),
    "train_clip": ("data", "tokenizer", "clip"),
}

# What may change between the parts of a run: how long it is, what is told, how memory is used.
FREE = {
    "steps", "log_every", "eval_every", "save_every", "keep", "accumulate", "attention",
    "checkpointing", "compile",
}  # fmt: skip


def identity(config: TrainConfig, run_config: Config | None, seed: int) -> dict:
    """Return what must not change when a run is resumed, as plain JSON values."""
    stages = [s for s in SECTIONS if run_config and getattr(run_config, s) == config]
    stage = stages[0] if len(stages) == 1 else "train"
    sections = {name: getattr(run_config, name) for name in SECTIONS.get(stage, ())}
    parts = {name: dataclasses.asdict(part) for name, part in sections.items()}
    parts[stage] = dataclasses.asdict(config)
    parts[stage]["lr_steps"] = 0 if config.halve_at else config.lr_steps or config.steps
    kept = {
        name: {key: value for key, value in part.items() if key not in FREE}
        for name, part in parts.items()
    }
    return json.loads(json.dumps({"seed": seed, **kept}))


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """List, as 'section.field was A, is now B', where two nested dicts differ."""
    found = []
    for key in dict.fromkeys((*old, *new)):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, name + ".")
        elif a != b:
            found.append(f"{name} was {a}, is now {b}")
    return found
