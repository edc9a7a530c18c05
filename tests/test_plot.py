"""Figures hold what they were given: pixels where they belong, the right stage lit."""

import base64
from io import BytesIO
from xml.etree import ElementTree

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from minidalle import notebook, plot
from minidalle.attention import row_mask
from minidalle.config import get_config


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_tile_lays_images_out_row_by_row_on_white():
    images = torch.rand(3, 3, 4, 5)
    sheet = plot.tile(images, columns=2, gap=1)
    assert sheet.shape == (4 + 1 + 4, 5 + 1 + 5, 3)
    for i, (y, x) in enumerate([(0, 0), (0, 6), (5, 0)]):
        assert torch.equal(sheet[y : y + 4, x : x + 5], images[i].permute(1, 2, 0))
    assert (sheet[4] == 1).all() and (sheet[:, 5] == 1).all() and (sheet[5:, 6:] == 1).all()


def test_tile_clamps_what_is_no_colour():
    assert plot.tile(torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1), 1).tolist() == [[[0, 0.5, 1]]]


def test_show_masks_shows_each_mask_and_parts_text_from_image():
    mask = row_mask(3, 2)
    figure = plot.show_masks({"row": mask, "again": mask}, text_len=3)
    for axis, name in zip(figure.axes, ("row", "again"), strict=True):
        assert axis.get_title() == name
        assert torch.equal(torch.tensor(axis.images[0].get_array().data), mask)
        assert {line.get_xdata()[0] for line in axis.lines} == {0, 2.5}  # one line each way


def test_show_curves_names_each_curve_and_obeys_log():
    figure = plot.show_curves({"a": ([1, 2], [3, 4]), "b": ([1, 2], [5, 6])}, "x", "y", log="y")
    (axis,) = figure.axes
    assert [line.get_label() for line in axis.lines] == ["a", "b"]
    assert list(axis.lines[1].get_ydata()) == [5, 6]
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == 2
    assert (axis.get_xscale(), axis.get_yscale()) == ("linear", "log")


def test_show_tokens_writes_every_id_into_its_cell():
    figure = plot.show_tokens(torch.rand(3, 8, 12), torch.arange(6).view(2, 3))
    where = {text.get_text(): text.get_position() for text in figure.axes[1].texts}
    assert where == {str(3 * r + c): (c + 0.5, r + 0.5) for r in range(2) for c in range(3)}


def test_sample_sheet_has_a_row_for_each_caption_and_a_note_under_each_image():
    images = torch.rand(2, 3, 4, 4)
    columns, notes = [("true", images), ("best", images)], [["good", "fair"], ["bad", "poor"]]
    figure = plot.sample_sheet(["one", "two"], columns, notes, "title")
    (axis,) = figure.axes
    where = {text.get_text(): text.get_position() for text in axis.texts}
    shown = [image.get_extent() for image in axis.images]  # column by column
    left, right, below, above = (torch.tensor(v).view(2, 2) for v in zip(*shown, strict=True))
    for row, caption in enumerate(("one", "two")):
        assert where[caption][0] < left.min() and above[0, row] < where[caption][1] < below[0, row]
        for column, (heading, _) in enumerate(columns):
            assert left[column, row] < where[heading][0] < right[column, row]
            x, y = where[notes[row][column]]
            assert left[column, row] < x < right[column, row]
            assert below[column, row] < y < (above[column, 1] if row == 0 else 99)
    assert where["true"][1] < above.min() and figure.get_suptitle() == "title"


STAGES = ["bpe", "dvae", "dalle", "attention", "generate", "clip"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_map_lights_one_stage_and_the_decoder_with_its_encoder(stage):
    drawing = ElementTree.fromstring(notebook.lit_map(stage))
    groups = [g.get("class") for g in drawing.iter("{http://www.w3.org/2000/svg}g")]
    lit = [name for name in groups if name and name.endswith(" lit")]
    assert lit == [f"stage {stage} lit"] * (2 if stage == "dvae" else 1)
    assert notebook.lit_map("all").count(' lit"') == 7


def test_the_map_has_every_shape_of_the_toy_world():
    c = get_config("toy").dalle
    words = " ".join(ElementTree.fromstring(notebook.lit_map("all")).itertext())
    for shape in (
        f"L = {c.text_len - 1} ids of {c.text_vocab}",
        f"(B, {c.grid}, {c.grid})",
        f"{c.grid**2} codes of {c.image_vocab}",
        f"{c.text_len} + {c.grid**2} tokens",
        f"logits (B, {c.grid**2}, {c.image_vocab})",
        f"({c.text_len + c.grid**2}, {c.text_len + c.grid**2})",
    ):
        assert shape in words, shape


def test_the_map_knows_no_other_stage():
    with pytest.raises(ValueError, match="unknown stage 'vqgan'; choose from bpe, dvae"):
        notebook.show_map("vqgan")


def test_a_notebook_is_shown_the_map_as_svg(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    notebook.show_map("clip")
    assert 'class="stage clip lit"' in shown[0].data


CAPTION = "pay $\\bad{$ now, or $x^2$; \x07 {} \u2028 %s " + "very " * 300 + "long"


def test_a_caption_is_shown_as_it_is_and_never_ends_a_training(tmp_path):
    """A `$` is money, not mathematics; odd characters and endless words are drawn somehow."""
    x = torch.rand(2, 3, 8, 8)
    figures = [
        plot.show_images(x, title=CAPTION),
        plot.show_pairs(x, x, labels=("$\\bad{$", "b")),
        plot.sample_sheet([CAPTION, "b"], [("$\\bad{$", x)], [[CAPTION], [""]], CAPTION),
        plot.show_captioned(x, [CAPTION, "$"]),
        plot.show_curves({CAPTION: ([1, 2], [3, 4]), "$": ([1], [2])}, CAPTION, CAPTION, CAPTION),
    ]
    for figure in figures:
        maths = [t for t in figure.findobj(Text) if "bad" in t.get_text() and t.get_parse_math()]
        assert not maths
        assert plot.save(figure, tmp_path / "a.png").stat().st_size > 1000


def test_the_ticks_of_a_logarithmic_axis_are_still_set_as_maths():
    figure = plot.show_curves({"a": ([1, 1000], [1, 2])}, "x", "y", log="x")
    figure.canvas.draw()
    labels = [t for t in figure.axes[0].get_xticklabels() if t.get_text()]
    assert labels and all(t.get_parse_math() and "10^" in t.get_text() for t in labels)


def test_an_image_in_a_page_is_read_back_by_pillow():
    image = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    png = base64.b64decode(plot.data_uri(image).removeprefix("data:image/png;base64,"))
    read = np.asarray(Image.open(BytesIO(png)).convert("RGB"))
    assert torch.equal(torch.from_numpy(read.copy()), image.permute(1, 2, 0))
    assert plot.data_uri(image / 255) == plot.data_uri(image)
    with pytest.raises(ValueError, match=r"\(5, 7\)"):
        plot.data_uri(image[0])
    assert plot.data_uri(plot.show_images(image[None])).startswith("data:image/png;base64,iVBOR")
    assert not plt.get_fignums()


def test_save_leaves_a_png_and_no_open_figure(tmp_path):
    path = plot.save(plot.show_images(torch.rand(2, 3, 4, 4)), tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG") and not plt.get_fignums()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
