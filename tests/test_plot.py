"""Figures hold what they were given: pixels where they belong, the right stage lit."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgba

from minidalle import plot, plot_map
from minidalle.attention import row_mask


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_tile_lays_pictures_out_row_by_row_on_white():
    images = torch.rand(3, 3, 4, 5)
    sheet = plot.tile(images, columns=2, gap=1)
    assert sheet.shape == (4 + 1 + 4, 5 + 1 + 5, 3)
    for i, (y, x) in enumerate([(0, 0), (0, 6), (5, 0)]):
        assert torch.equal(sheet[y : y + 4, x : x + 5], images[i].permute(1, 2, 0))
    assert (sheet[4] == 1).all() and (sheet[:, 5] == 1).all() and (sheet[5:, 6:] == 1).all()


def test_tile_clamps_what_is_no_colour():
    assert plot.tile(torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1), 1).tolist() == [[[0, 0.5, 1]]]


def test_show_masks_shows_each_mask_and_parts_text_from_picture():
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


def test_sample_sheet_has_a_row_for_each_caption_and_a_note_under_each_picture():
    images = torch.rand(2, 3, 4, 4)
    figure = plot.sample_sheet(["one", "two"], [("true", images)], [["good"], ["bad"]], "title")
    assert texts(figure.axes[0]) == ["one"] and texts(figure.axes[2]) == ["two"]
    assert [figure.axes[i].get_xlabel() for i in (1, 3)] == ["good", "bad"]


@pytest.mark.parametrize("stage", [s for s in plot_map.STAGES if s != "decoder"])
def test_the_map_lights_one_stage_and_the_decoder_with_its_encoder(stage):
    (axis,) = plot_map.show_map(stage).axes
    lit = [p for p in axis.patches if p.get_facecolor() == to_rgba(plot_map.LIT)]
    assert len(lit) == (2 if stage == "dvae" else 1)
    bold = {text.get_text() for text in axis.texts if text.get_weight() == "bold"}
    assert plot_map.STAGES[stage][0] in bold


def test_the_map_knows_no_other_stage():
    with pytest.raises(ValueError, match="unknown stage 'vqgan'; choose from bpe, dvae"):
        plot_map.show_map("vqgan")


def test_save_leaves_a_png_and_no_open_figure(tmp_path):
    path = plot.save(plot.show_images(torch.rand(2, 3, 4, 4)), tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG") and not plt.get_fignums()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
