"""The vote: a page that stands alone, a count by hand, and a voter in a real browser."""

import base64
import csv
import json
import re
import time
from io import BytesIO

import pytest
import torch
from helpers.chromium import Chromium, missing
from PIL import Image

from minidalle.evaluation.vote import (
    COLUMNS,
    QUESTIONS,
    describe,
    read_votes,
    write_vote,
)

CAPTIONS = ["a <b>red</b> heart", 'a "blue" ring </script>', "a green star, top left"]
NAMES = ("runs/a", "runs/b")


def write(folder, n: int = 3, seed: int = 0):
    first = torch.full((n, 3, 4, 4), 0.2) + torch.arange(n).view(n, 1, 1, 1) / 10
    return write_vote(folder, (CAPTIONS * n)[:n], first, first + 0.05, NAMES, seed)


def items_of(page) -> list[dict]:
    data = re.search(r"= (\{.*\});\nconst store", page.read_text(encoding="utf-8"))
    return json.loads(data[1])["items"]


def test_the_page_stands_alone_and_is_blind(tmp_path):
    page = write(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)\s*=\s*"(?!data:)[^"]', text)
    assert "runs/a" not in text and "runs/b" not in text
    assert text.count("</script>") == 1  # none from a caption
    assert sorted(i["caption"] for i in items_of(page)) == sorted(CAPTIONS)


def test_the_key_knows_which_image_is_whose(tmp_path):
    page = write(tmp_path, n=40)
    key = json.loads((tmp_path / "vote_key.json").read_text())
    sides = set()
    for item in items_of(page):
        png = Image.open(BytesIO(base64.b64decode(item["left"].split(",")[1])))
        grey = png.convert("RGB").getpixel((0, 0))[0]
        of_a = abs(grey - 255 * (0.2 + item["id"] / 10)) < 1 or item["id"] > 8
        if item["id"] <= 7:
            assert key["left"][item["id"]] == ("runs/a" if of_a else "runs/b")
        sides.add(key["left"][item["id"]])
    assert sides == set(NAMES)
    assert [i["id"] for i in items_of(page)] != list(range(40))


def cast(path, folder, rows):
    key = json.loads((folder / "vote_key.json").read_text())
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        for voter, item, question, run in rows:
            answer = {key["left"][item]: "left"}.get(
                run, "neither" if run == "neither" else "right"
            )
            out.writerow([key["vote"], voter, item, question, answer])
    return path


def test_majorities_are_counted_by_run(tmp_path):
    write(tmp_path)
    a, b = NAMES
    one = [("ann", 0, "realism", a), ("ann", 1, "realism", a), ("ann", 0, "match", "neither")]
    two = [("bob", 0, "realism", a), ("bob", 1, "realism", b), ("bob", 0, "match", b)]
    three = [("cy, jr", 0, "realism", b), ("cy, jr", 0, "match", b), ("cy, jr", 2, "match", a)]
    twice = [("bob", 2, "realism", b), ("bob", 2, "realism", a)]  # he changed his mind
    files = [
        cast(tmp_path / f"{i}.csv", tmp_path, rows)
        for i, rows in enumerate((one, two + twice, three))
    ]
    found = read_votes(tmp_path / "vote_key.json", files)
    realism, match = found["realism"], found["match"]
    assert (realism["captions"], realism["voters"]) == (3, 3)
    assert realism[a]["share"] == pytest.approx(2 / 3) and realism["tied"]["share"] == 1 / 3
    assert realism[a]["low"] < 2 / 3 < realism[a]["high"]
    assert (match["captions"], match["voters"]) == (2, 3)
    assert match[a]["share"] == match[b]["share"] == 0.5 and match["neither"]["share"] == 0
    assert "runs/a 66.7% [" in describe(found) and "(3 captions, 3 voters)" in describe(found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("other,ann,0,realism,left", "line 2: belongs to vote 'other'"),
        ("{vote},ann,3,realism,left", "line 2: there is no item '3'"),
        ("{vote},ann,-1,realism,left", "there is no item '-1'"),
        ("{vote},ann,0,realism,neither", "'realism' cannot be answered 'neither'"),
        ("{vote},ann,0,taste,left", "'taste' cannot be answered"),
        ("", "no votes"),
    ],
)
def test_rows_that_do_not_belong_are_named(tmp_path, line, message):
    write(tmp_path)
    vote = json.loads((tmp_path / "vote_key.json").read_text())["vote"]
    path = tmp_path / "bad.csv"
    path.write_text(",".join(COLUMNS) + "\n" + line.format(vote=vote) + "\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_votes(tmp_path / "vote_key.json", [path])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns must be"):
        read_votes(tmp_path / "vote_key.json", [path])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"vote": "a", "names": ["b"], "left": ["b"]}'])
def test_another_file_in_the_key_s_place_is_named(tmp_path, text):
    path = tmp_path / "key.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"key.json is not the vote_key.json of a vote"):
        read_votes(path, [])


def test_unequal_sides_are_refused(tmp_path):
    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="got 2 and 1 for 2"):
        write_vote(tmp_path, CAPTIONS[:2], x, x[:1], NAMES)
    with pytest.raises(ValueError, match="two different runs, got 'a' twice"):
        write_vote(tmp_path, CAPTIONS[:2], x, x, ("a", "a"))


@pytest.fixture
def browser(tmp_path):
    browser = Chromium.start(tmp_path)
    yield browser
    browser.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(bool(missing()), reason=missing() or "all here")
def test_a_voter_votes_in_a_real_browser(tmp_path, browser):
    page = write(tmp_path)
    items = items_of(page)
    browser.open(page)
    shown = browser.run("return [...document.querySelectorAll('img')].map(i => i.naturalWidth)")
    assert shown == [4, 4]
    assert (
        browser.run("return document.getElementById('caption').textContent") == items[0]["caption"]
    )

    browser.click("#save")  # without a name nothing is saved
    assert "name" in browser.run("return document.getElementById('progress').textContent")
    browser.type("#voter", 'Ann "the eye" O\u2019Hara')
    choices = [("left", "neither"), ("right", "left"), ("left", "right")]
    for i, (realism, match) in enumerate(choices):
        browser.click(f"input[name=realism][value={realism}]")
        browser.click(f"input[name=match][value={match}]")
        if i < 2:
            browser.click("#next")
        if i == 0:  # answers outlive a reload
            browser.open(page)
            assert browser.run("return document.getElementById('progress').textContent").startswith(
                "Caption 2 of 3; 1 answered."
            )
            browser.click("#back")
            checked = "return [...document.querySelectorAll(':checked')].map(i => i.value)"
            assert browser.run(checked) == ["left", "neither"]
            browser.click("#next")
    assert "All done" in browser.run("return document.getElementById('progress').textContent")
    browser.click("#save")
    path = _wait_for_csv(tmp_path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    want = [
        (str(item["id"]), question, answer)
        for item, pair in zip(items, choices, strict=True)
        for question, answer in zip(QUESTIONS, pair, strict=True)
    ]
    assert [(r["item"], r["question"], r["answer"]) for r in rows] == want
    assert {r["voter"] for r in rows} == {'Ann "the eye" O\u2019Hara'}
    assert read_votes(tmp_path / "vote_key.json", [path])["match"]["captions"] == 3


def _wait_for_csv(folder):
    for _ in range(200):
        found = list(folder.glob("vote-*.csv"))
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError("the browser saved no file")
