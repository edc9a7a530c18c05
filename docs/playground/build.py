"""Write the playground: one HTML file with the page, the engine and the shipped weights inside.

    python docs/playground/build.py [--preset toy] [--out docs/_build/playground.html]

The file needs no server and no network. Weights are 16-bit numbers in base64, the models' sizes are
read from the config.json beside each model.
"""

import argparse
import base64
import json
import struct
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STAGES = ("dvae", "dalle", "clip", "judge")
SCRIPTS = ("weights", "engine", "judge", "worker", "stream", "drawing", "candidates", "page")
PARTS = ("page.css", *(f"{name}.js" for name in SCRIPTS))
UNUSED = {"dvae": ("encoder.",)}  # the page only decodes
MOST = 7_000_000  # bytes of the page
KINDS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file: a length, a JSON header, then the numbers."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in KINDS:
            raise ValueError(f"{path}: {name} is {entry['dtype']}, not one of {', '.join(KINDS)}")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        flat = np.frombuffer(content[start:end], KINDS[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def collect(folder: Path) -> dict:
    """Return what the page needs of a folder of checkpoints, ready to be written as JSON.

    models: {stage: {config, tensors: {name: [shape, first number]}}}; weights: base64 of all
    numbers as float16; tokenizer: its file; data: the name of the world. The judge may be missing.
    Raises ValueError where another stage is.
    """
    models, numbers, first = {}, [], 0
    for stage in STAGES:
        if not (folder / stage / "model.safetensors").is_file():
            if stage == "judge":
                continue
            raise ValueError(f"no trained {stage} in {folder}: train it, or choose another preset")
        config = json.loads((folder / stage / "config.json").read_text())
        tensors = {}
        for name, tensor in read_safetensors(folder / stage / "model.safetensors").items():
            if name.startswith(UNUSED.get(stage, ())):
                continue
            tensors[name] = [list(tensor.shape), first]
            numbers.append(tensor.astype("<f2").tobytes())
            first += tensor.size
        models[stage] = {"config": config.get(stage, config), "tensors": tensors}
    sides = {models[stage]["config"]["image_size"] for stage in models if stage != "dalle"}
    if len(sides) > 1:
        raise ValueError(f"the models of {folder} see images of different sizes: {sorted(sides)}")
    run = json.loads((folder / "dalle" / "config.json").read_text())
    return {
        "models": models,
        "tokenizer": json.loads((folder / "tokenizer" / "tokenizer.json").read_text("utf-8")),
        "data": run["data"]["name"],
        "preset": run["preset"],
        "weights": base64.b64encode(b"".join(numbers)).decode(),
    }


def examples(data: str) -> dict:
    """Return a world's first caption, its synonyms, and the captions of "Try to fool it"."""
    from minidalle.data import digits, shapes  # not at the top: main() may have to find the package

    if data == "shapes":
        synonyms = shapes.SYNONYMS
        where = "in the middle on a white background"
        held_out = [f"a large {colour} {shape} {where}" for shape, colour in shapes.HELD_OUT]
        first = "a large red heart in the middle on a white background"
        two = "a red circle and a blue square on white"
        single = "Every training image holds exactly one object"
    elif data == "mnist":
        synonyms = digits.SYNONYMS
        pairs = sorted(digits.held_out(digits.DIGITS))
        held_out = [f"a {c} {d} on a black background" for d, c in pairs]
        first = "a green seven on a black background"
        two = "a red three, a blue five and a green eight on a white background"
        single = "No training image holds more than two digits"
    else:
        raise ValueError(f"the page has captions for shapes and mnist, not for {data!r}")
    held_out = sorted(caption.replace("a orange", "an orange") for caption in held_out)
    unknown = "a red dinosaur on a white background"
    return {
        "first": first,
        "synonyms": {value: list(words) for value, words in synonyms.items()},
        "held_out": held_out,
        "two": {"caption": two, "why": single},
        "unknown": {"caption": unknown, "word": "dinosaur"},
    }


def notebooks() -> dict[str, str]:
    """Return the page of each notebook on the site, by its number: {'01': 'notebooks/…html'}."""
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return {name[:2]: f"notebooks/{name}.html" for name in names}


def build(folder: Path) -> str:
    """Return the page for a folder of checkpoints. Raises ValueError where it gets too large."""
    content = collect(folder)
    weights = content.pop("weights")
    content |= {"examples": examples(content["data"])}
    # No '<' in the data, so that nothing in it can end the element it stands in.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    page = (HERE / "page.html").read_text("utf-8")
    for number, link in notebooks().items():
        page = page.replace(f"notebook:{number}", link)
    parts = {name: (HERE / name).read_text("utf-8") for name in PARTS}
    for name, text in (parts | {"data": data, "weights": weights}).items():
        if "</script" in text or page.count(f"/*{name}*/") != 1:
            raise ValueError(f"{name} cannot be put into page.html")
        page = page.replace(f"/*{name}*/", text)
    size = len(page.encode())
    if size > MOST:
        raise ValueError(f"the page would have {size:,} bytes, more than {MOST:,}")
    return page


def main() -> None:
    """Read the arguments and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="toy", help="a folder of data/checkpoints")
    parser.add_argument("--out", type=Path, default=HERE.parent / "_build" / "playground.html")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    try:
        page = build(ROOT / "data" / "checkpoints" / arguments.preset)
    except ValueError as error:
        sys.exit(f"error: {error}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page, encoding="utf-8")
    print(f"wrote {arguments.out} ({len(page.encode()) / 1e6:.1f} MB): open it in any browser")


if __name__ == "__main__":
    main()
