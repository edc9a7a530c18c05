"""Does every link of the built site lead somewhere? Reads each page of docs/_build.

    python docs/check_site.py [docs/_build]

A link is an href or src without a host; its file must be there, and its heading (#) in that file.
Links to our own repository are held against the working tree. Ends with status 1 otherwise.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from links import BRANCH, REPOSITORY

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(f"{REPOSITORY}/{kind}/{BRANCH}/" for kind in ("blob", "tree"))


class Page(HTMLParser):
    """The links of a page, and what links may point at."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links |= {found[name] for name in ("href", "src") if found.get(name)}


def broken(folder: Path) -> list[str]:
    """Return page and link of every link that leads nowhere."""
    paths = [path for path in folder.rglob("*.html") if "_static" not in path.parts]
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in paths}
    found = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if link.startswith(OURS):
                there = (ROOT / unquote(parts.path.split(f"/{BRANCH}/", 1)[1])).exists()
            elif parts.scheme or parts.netloc:
                continue
            else:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                known = pages[target].anchors if target in pages else {parts.fragment}
                there = target.exists() and (not parts.fragment or unquote(parts.fragment) in known)
            if not there:
                found.append(f"{path.relative_to(folder.resolve())}: {link}")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs/_build"
    lost = broken(folder)
    print("\n".join(lost) or f"every link of {folder} leads somewhere")
    sys.exit(bool(lost))
