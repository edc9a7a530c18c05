"""Run the notebooks again and store their results: `make notebooks`.

What is written depends on the code alone, so nothing changes on disk where
nothing changed in the code: no times, no widgets, no version of the reader's
Python. Addresses are those of docs/links.py. A figure's alternative text is its
cell's metadata "alt", where nbconvert reads it; it is copied to where MyST-NB
does. Figures are stored in 256 colours, a third of the bytes.
"""

import sys
from base64 import b64decode, b64encode
from importlib import import_module
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "docs"))
links = import_module("links")

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",  # knows the ! and % of the setup cell
}


def execute(path: Path) -> None:
    """Run one notebook in its own folder and write it back."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = links.relink(cell.source)
    run = {"path": path.parent}
    options = dict(timeout=1800, startup_timeout=300, kernel_name="python3")
    options |= dict(record_timing=False, coalesce_streams=True)
    NotebookClient(notebook, resources={"metadata": run}, **options).execute()
    notebook.metadata = {"kernelspec": KERNEL, "language_info": LANGUAGE}
    for cell in notebook.cells:
        describe(cell)
    nbformat.write(notebook, path)


def describe(cell) -> None:
    """Drop what depends on the run; copy "alt"; shrink the figures."""
    cell.metadata.pop("execution", None)
    if "alt" in cell.metadata:
        cell.metadata["mystnb"] = {"image": {"alt": cell.metadata["alt"]}}
    for output in cell.get("outputs", ()):
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = shrink(output.data["image/png"])


def shrink(png: str) -> str:
    """Reduce a PNG, as base64 text, to 256 colours."""
    image, out = Image.open(BytesIO(b64decode(png))), BytesIO()
    few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(out, "png", optimize=True)
    return b64encode(out.getvalue()).decode()


def main(names: list[str]) -> None:
    """Execute the notebooks named on the command line, all without a name."""
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        execute(path.resolve())


if __name__ == "__main__":
    main(sys.argv[1:])
