"""Build a wheel and a source archive, install each in an empty environment, and draw.

    python .ci/try_release.py --write python3.11 python3.12 python3.13

For each Python: an empty virtual environment, the wheel and what it depends on, and in an empty
folder `minidalle generate "a red heart"`; then the same with the archive. --write puts versions and
date into the table of docs/works-with.md; --torch 2.13.0 takes that torch in place of the newest.
The environments take some gigabytes while it runs.
"""

import argparse
import datetime
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs/works-with.md"
CAPTION = "a red heart"
VERSIONS = (
    "import sys, torch, numpy; print(sys.version.split()[0], torch.__version__, numpy.__version__)"
)


def run(*words: object, folder: Path = ROOT) -> str:
    """Run a program to its end. Returns what it printed; says so and stops where it fails."""
    done = subprocess.run([str(w) for w in words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """Write the wheel and the source archive into a folder. Returns their paths."""
    run(sys.executable, "-m", "venv", folder / "build")
    python = folder / "build/bin/python"
    run(python, "-m", "pip", "install", "-q", "build")
    run(python, "-m", "build", "--outdir", folder / "dist", ROOT)
    return next(folder.glob("dist/*.whl")), next(folder.glob("dist/*.tar.gz"))


def try_one(base: str, wheel: Path, archive: Path, folder: Path, torch: str) -> str:
    """Install and draw with one Python and `torch`, a requirement. Returns its row of the table."""
    run(base, "-m", "venv", folder / "venv")
    python = folder / "venv/bin/python"
    for package, options in ((wheel, (torch,)), (archive, ("--force-reinstall", "--no-deps"))):
        run(python, "-m", "pip", "install", "-q", "--no-compile", *options, package)
        place = folder / f"{package.suffix[1:]}"
        place.mkdir()
        run(folder / "venv/bin/minidalle", "generate", CAPTION, "--out", "heart.png", folder=place)
        assert (place / "heart.png").stat().st_size > 1000, package
    versions = " | ".join(run(python, "-c", VERSIONS, folder=folder).split())
    system = f"{platform.system()} {platform.machine()}"
    return f"| {versions} | {system} | {datetime.date.today()} |"


def write(row: str) -> None:
    """Put a row into the table, in the place of the same Python's older row."""
    minor = re.match(r"\| (\d+\.\d+)\.", row)[1]
    text = TABLE.read_text(encoding="utf-8")
    text = re.sub(rf"^\| {re.escape(minor)}[. ].*$", row, text, flags=re.M)
    assert row in text, f"no row for Python {minor} in {TABLE}"
    TABLE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pythons", nargs="*", default=[sys.executable])
    parser.add_argument("--write", action="store_true", help=f"into {TABLE.relative_to(ROOT)}")
    parser.add_argument("--torch", metavar="VERSION", help="this one, not the newest")
    args = parser.parse_args()
    torch = f"torch=={args.torch}" if args.torch else "torch"
    with tempfile.TemporaryDirectory(prefix="minidalle-release-") as name:
        wheel, archive = build(Path(name))
        for path in (wheel, archive):
            print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
        for base in args.pythons:
            with tempfile.TemporaryDirectory(prefix="minidalle-try-") as folder:
                row = try_one(base, wheel, archive, Path(folder), torch)
            print(row, flush=True)
            if args.write:
                write(row)


if __name__ == "__main__":
    main()
