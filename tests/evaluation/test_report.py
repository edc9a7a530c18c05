"""The report: one page with every number, and the same numbers as JSON."""

import base64
import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest
import torch

from minidalle.evaluation.candidates import Candidates
from minidalle.evaluation.measure import Cases
from minidalle.evaluation.report import nearest_sheet, sample_sheet, write_report

MARK = {"share": 0.875, "low": 0.529, "high": 0.978, "n": 8}
FOUND = {
    "n": 8,
    "likelihood": {"bits_per_dim": 3.21987},
    "codebook": {"codes_used": 77.0},
    "clip_score": {"true": 0.31234},
    "frechet": {"one": {"0": 4.5, "1": 2.25}},
    "judge_score": {"one": {"shape": 6.75}},
    "true": {"shape": MARK, "exact": MARK},
    "one": {"shape": MARK, "exact": MARK},
    "best": {"shape": MARK, "exact": MARK},
    "confusion": {"shape": {"star": {"star": 3, "<ring>": 1}, "<ring>": {"star": 0, "<ring>": 4}}},
    "best_of": {"1": MARK, "2": MARK},
    "by_pair": {"<red> star": {"n": 3, "one": 0.29, "best": 0.5}},
}
NUMBERS = {"settings": {"candidates": 2, "seed": 0}, "kinds": {"seen": FOUND, "held_out": FOUND}}


class Strict(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_every_number_and_stands_alone(tmp_path):
    page = write_report(tmp_path, "Report of <toy>", NUMBERS, {"More <b>": plt.figure()})
    text = page.read_text(encoding="utf-8")
    Strict(text)
    numbers = ("87.5 [53, 98]", "3.220", "77.000", "0.312", "2.25", "6.75", "29.0")
    words = (
        "Report of &lt;toy&gt;",
        "&lt;ring&gt;",
        "best of 2",
        "Held-out pairs",
        "More &lt;b&gt;",
        "&lt;red&gt; star",
    )
    for shown in numbers + words:
        assert shown in text
    assert "<ring>" not in text
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 4 and all(s.startswith("data:image/png;base64,") for s in sources)
    for source in sources:
        assert base64.b64decode(source.split(",")[1]).startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report.json").read_text()) == NUMBERS


def test_what_was_not_measured_is_not_shown(tmp_path):
    bare = {k: FOUND[k] for k in ("n", "likelihood", "codebook")}
    numbers = {"settings": {"candidates": 1}, "kinds": {"photographs": bare}}
    text = write_report(tmp_path, "Report", numbers).read_text(encoding="utf-8")
    Strict(text)
    assert "photographs, 8 captions" in text and "judged" not in text and "<img" not in text


def test_numbers_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, "Report", {"settings": {}, "kinds": {}, "x": float("nan")})
    assert not (tmp_path / "report.html").exists()


def shown(sheet) -> list[list]:
    """The images of a sheet of two rows, row by row, as arrays."""
    images = sorted(sheet.axes[0].images, key=lambda i: (i.get_extent()[3], i.get_extent()[0]))
    arrays = [image.get_array() for image in images]
    return [arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]]


def same(a, b) -> bool:
    return bool((a == b).all())


def test_sheets_hold_the_right_images():
    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 4, 4) * 20
    features = {"CLIP": (torch.eye(10)[[3, 7]], torch.eye(10))}
    sheet = nearest_sheet(["a", "b"], x[[3, 7]] / 255 + 0.001, x, features)
    one, two = shown(sheet)
    assert len(one) == len(two) == 7  # the sample, three by pixels, three by CLIP
    assert same(one[1], one[4]) and same(two[1], two[4]) and not same(one[1], two[1])
    notes = [text.get_text() for text in sheet.axes[0].texts]
    assert "0.001" in notes and "1.000" in notes

    cases = Cases(x[:2], ["a <star>", "a ring"])
    drawn = Candidates(torch.stack([x[2:4], x[4:6]], 1), torch.tensor([[0.1, 0.2], [0.4, 0.3]]))
    sheet = sample_sheet(cases, x[6:8] / 255, drawn)
    one, two = shown(sheet)
    assert "a <star>" in [text.get_text() for text in sheet.axes[0].texts]
    assert same(two[2], two[3])  # the second's first is its best
    assert [int(a[0, 0, 0]) for a in (*one, *two)] == [0, 120, 40, 80, 20, 140, 60, 60]
