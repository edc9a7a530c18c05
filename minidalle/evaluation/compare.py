"""Is my loss curve normal? A run's logs beside those of the run that made the shipped checkpoints.

Source: this project; the question is the one asked most often of every implementation.
"""

from collections.abc import Sequence
from pathlib import Path

from minidalle import plot
from minidalle.stages import SHIPPED
from minidalle.training.log import read_log

Curve = list[tuple[int, float | None]]  # (updates done, value); None was not finite
# What tells most about each stage, in training and on the test batch; lower is better for all.
CURVES = {
    "dvae": {"loss": "training loss", "test_bound": "test bound", "test_error": "test error"},
    "dalle": {"image_nats": "training, nats per image token", "test_image_nats": "test, the same"},
    "clip": {"loss": "training loss", "test_loss": "test loss"},
}
NORMAL, STRANGE = 0.1, 0.3  # how far behind, as a share of what the reference had gained by then
SMOOTH = 5  # lines of the log that are averaged
ADVICE = {
    "dvae": "look at runs/…/dvae/samples: are the images yours, and upright?",
    "dalle": "was the dVAE good first, and were the captions cut (`minidalle data` says so)?",
    "clip": "do captions and images belong together?",
}


def compare_run(run: str | Path, preset: str) -> str:
    """Draw a run's curves over those of a preset's shipped run, into run/compare.png; judge them.

    Returns what to print: a sentence for each curve, and what was written.
    Raises ValueError where the preset has no reference, or the two no log in common.
    """
    run, reference = Path(run), SHIPPED / preset
    if not (reference / "dvae" / "log.jsonl").is_file():
        there = sorted(path.parts[-3] for path in SHIPPED.glob("*/dvae/log.jsonl"))
        raise ValueError(f"no reference curves of {preset!r}, only of {', '.join(there)}")
    sentences, panels = [], {}
    for stage, names in CURVES.items():
        logs = [folder / stage / "log.jsonl" for folder in (run, reference)]
        if not all(path.is_file() for path in logs):
            continue
        mine, theirs = map(read_log, logs)
        for name in [n for n in names if n in mine and n in theirs]:
            title, yours, normal = f"{stage}, {names[name]}", mine[name], theirs[name]
            panels[title] = {"reference": smooth(normal), "your run": smooth(yours)}
            sentences.append(f"{title}: {verdict(*map(smooth, (yours, normal)), ADVICE[stage])}")
    if not panels:
        raise ValueError(f"nothing to compare: {run} has no log.jsonl of a stage of {reference}")
    path = plot.save(plot.show_panels(panels, "updates"), run / "compare.png")
    return "\n".join([*sentences, f"Wrote {path}: {run} over the shipped run of {preset}."])


def smooth(curve: Curve) -> Curve:
    """Average every value with the few before it; a short curve stays as it is."""
    if len(curve) < 4 * SMOOTH:
        return curve
    parts = [curve[max(0, i - SMOOTH + 1) : i + 1] for i in range(len(curve))]
    return [
        (part[-1][0], None if None in (v := [v for _, v in part]) else sum(v) / len(v))
        for part in parts
    ]


def verdict(yours: Curve, normal: Curve, advice: str) -> str:
    """Say in words how a curve stands to the reference where both have come.

    The measure is how much the reference had gained since its first value.
    """
    if any(value is None for _, value in yours):
        return "not a finite number in places: not normal. Lower the rate, and look for bad images."
    step = min(yours[-1][0], normal[-1][0])
    here, there = at(yours, step), at(normal, step)
    start = normal[0][1] if len(normal) > 1 else here
    gained = abs(start - at(normal, step)) or abs(there) or 1.0
    behind = (here - there) / gained
    numbers = f"{here:.3f} after {step} updates, the reference {there:.3f}"
    if behind <= -NORMAL:
        return f"{numbers}: better than the reference."
    if behind <= NORMAL:
        return f"{numbers}: normal."
    if behind <= STRANGE:
        return f"{numbers}: a little behind, as another seed, batch or rate may be."
    return f"{numbers}: not normal, {behind:.0%} of the reference's gain behind; {advice}"


def at(curve: Sequence[tuple[int, float]], step: int) -> float:
    """Return the value at an update, on the straight line between its neighbours."""
    before = [point for point in curve if point[0] <= step] or [curve[0]]
    after = [point for point in curve if point[0] >= step] or [curve[-1]]
    (x0, y0), (x1, y1) = before[-1], after[0]
    return y0 if x1 <= x0 else y0 + (y1 - y0) * (step - x0) / (x1 - x0)
