"""The slides: one deck a lecture, each slide a title, an image that is there, and a sentence."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("slides_conf", ROOT / "docs/slides/conf.py")
conf = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(conf)
every = pytest.mark.parametrize("deck", conf.DECKS, ids=lambda deck: deck.stem)


def test_every_lecture_of_the_syllabus_has_its_deck():
    syllabus = (ROOT / "docs/syllabus.md").read_text(encoding="utf-8")
    lectures = re.findall(r"^### Lecture (\d)\.|^\*\*([AB])\.\*\*", syllabus, re.M)
    names = [f"lecture-{number or letter.lower()}" for number, letter in lectures]
    assert names == [deck.stem for deck in conf.DECKS]
    assert re.findall(r"\[Slides\]\(slides/([\w-]+)\.md\)", syllabus) == names


@every
def test_a_slide_is_one_image_and_one_sentence_that_a_room_can_read(deck):
    slides = conf.slides(conf.borrow(deck.read_text(encoding="utf-8")))
    assert len(slides) >= 6
    for title, body in slides.items():
        image, sentence = body.split("\n\n")
        alt, file, cell = re.fullmatch(r"!?\[([^]]*)\]\(([^)#]+)#?([^)]*)\)", image).groups()
        assert (deck.parent / file).is_file(), title
        if cell:
            words, png = conf.take_figure(file, cell)
            assert alt == "its figure" and words and png.startswith(b"\x89PNG"), title
        else:
            assert image.startswith("![") and len(alt) >= 20, f"{title}: say what it shows"
        assert len(title) <= 50 and len(sentence) <= 85, f"{title}: too long for a projector"
        assert sentence.endswith("."), title


def test_a_figure_or_a_slide_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no figure in a cell 'nowhere'"):
        conf.take_figure("../../notebooks/02_dvae.ipynb", "nowhere")
    with pytest.raises(ValueError, match="0 decks have the slide 'Nowhere'"):
        conf.borrow("# Deck\n\n## Nowhere\n")
