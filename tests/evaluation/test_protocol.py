"""The paper's section 3 on data where the right numbers are known."""

import json
from pathlib import Path

import pytest
import torch

from minidalle.data import shapes
from minidalle.evaluation import protocol
from minidalle.evaluation.candidates import Candidates
from minidalle.evaluation.judge import Judge
from minidalle.evaluation.measure import Cases
from minidalle.evaluation.report import as_text
from minidalle.generate import Pipeline

SHIPPED = Path(__file__).parents[2] / "data" / "checkpoints" / "toy" / "judge"


class PixelEyes(torch.nn.Module):
    """A reranker whose features are the pixels, every one or fewer."""

    def __init__(self, every: int = 1):
        super().__init__()
        self.weight, self.every = torch.nn.Parameter(torch.zeros(1)), every

    def encode_image(self, images):
        return images.flatten(1)[:, :: self.every] - 0.5


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(SHIPPED)


def world(n: int, seed: int) -> Cases:
    scenes = shapes.draw(n, seed, "train")
    wanted = [shapes.read_caption(caption) for caption in scenes.captions]
    return Cases(scenes.images, scenes.captions, wanted, scenes.attributes)


@pytest.fixture(scope="module")
def found(judge):
    """Four candidates a caption: noise, the true image twice over noise, and the true image."""
    cases, training = world(30, 1), world(200, 0)
    training.images[5] = cases.images[7]  # one test image is in the training set
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (30, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    true = cases.images[:, None].expand(-1, 4, -1, -1, -1)
    weight = torch.tensor([1.0, 0.4, 0.2, 0.0]).view(1, 4, 1, 1, 1)  # how much of it is noise
    images = (weight * noise + (1 - weight) * true).byte()
    drawn = Candidates(images, torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(30, 4))
    pipeline = Pipeline(None, None, None, PixelEyes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "CAS_STEPS", 40)
        options = dict(overlap=0.99998, recipe="shapes")
        return protocol.paper_protocol(pipeline, judge, cases, drawn, training, **options)


def test_true_images_have_no_distance_and_noise_has_much(found):
    blur = found["all"]["blur"]
    assert found["settings"]["features"] == "the judge"
    assert list(blur["one sample"]) == ["0", "1", "2", "4", "8"]
    for radius in blur["one sample"]:
        best, real, one = (
            blur[name][radius]["frechet"] for name in ("best of 4", "training images", "one sample")
        )
        assert best < 1e-3 < real < one


def test_better_candidates_bring_the_distance_down_one_by_one(found):
    curve = [numbers["frechet"] for numbers in found["all"]["best_of"].values()]
    assert len(curve) == 3 and curve == sorted(curve, reverse=True) and curve[-1] < 1e-3
    scores = [numbers["CLIP score"] for numbers in found["all"]["best_of"].values()]
    assert scores == pytest.approx([0.1, 0.2, 0.4])


def test_what_the_training_set_holds_is_taken_out_and_the_rest_measured_again(found):
    assert found["overlap"]["removed"] == 1 and found["overlap"]["features"] == "CLIP"
    assert found["overlap"]["cosine"]["100%"] == pytest.approx(1, abs=1e-4)
    assert found["all"]["n"] == 30 and found["without overlap"]["n"] == 29
    assert set(found["without overlap"]) == {"n", "blur", "best_of"}


def test_a_network_taught_by_samples_is_tested_on_true_images(found):
    marks = found["cas"]["accuracy"]
    assert found["cas"]["images"] == 60, "four samples for every second caption, as many true ones"
    assert set(marks) == {"samples", "training images"}
    assert "position" not in marks["samples"], "some captions leave it open"
    assert {"shape", "colour", "size", "background", "exact"} == set(marks["samples"])
    for marked in marks.values():
        assert marked["exact"]["n"] == 15, "the captions that taught are not tested"
        assert marked["background"]["share"] > 0.5 and marked["background"]["clusters"] > 8


def test_the_page_the_file_and_the_text_say_the_same(found, tmp_path):
    path = protocol.write_protocol(tmp_path, {"held_out": found})
    assert json.loads((tmp_path / "protocol.json").read_text()) == {"held_out": found}
    page = path.read_text(encoding="utf-8")
    text = as_text(protocol.protocol_tables({"held_out": found}))
    for words in (
        "1 of 30 reach 0.99998",
        "frechet by the judge, over blur radius",
        "training images",
    ):
        assert words in page and words in text
    assert "all (30 captions)" in text and "without overlap (29 captions)" in text


def test_without_a_judge_clip_s_features_measure_and_the_table_says_so():
    cases, training = world(6, 1), world(3, 0)
    drawn = Candidates(cases.images[:, None], torch.full((6, 1), torch.nan))
    pipeline = Pipeline(None, None, None, PixelEyes(97))
    bare = Cases(cases.images, cases.captions)
    numbers = protocol.paper_protocol(pipeline, None, bare, drawn, training)
    assert numbers["settings"]["features"] == "CLIP" and "cas" not in numbers
    assert set(numbers["all"]["blur"]) == {"one sample"}, "three real images are too few"
    assert numbers["all"]["best_of"] == {}
    assert "frechet by CLIP" in as_text(protocol.protocol_tables({"test": numbers}))


def test_inception_measures_where_its_weights_are(monkeypatch):
    monkeypatch.setattr(protocol.metrics, "find_inception", lambda: Path("weights"))
    monkeypatch.setattr(protocol.metrics, "inception_metrics", lambda a, b, device: {"fid": 7.0})
    whose, measure = protocol.choose_measure(Pipeline(None, None, None), None)
    assert whose == "Inception-v3" and measure(None, None) == {"fid": 7.0}


def test_what_cannot_be_measured_is_said():
    cases, pipeline = world(3, 1), Pipeline(None, None, None)
    drawn = Candidates(cases.images[:, None], torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"torch-fidelity|Inception"):
        protocol.paper_protocol(pipeline, None, cases, drawn, cases)
    seeing = Pipeline(None, None, None, PixelEyes(97))
    bare = Cases(cases.images, cases.captions)
    known = protocol.paper_protocol(seeing, None, bare, drawn, bare, overlap=0.9)
    assert known["overlap"]["removed"] == 3 and "without overlap" not in known


def test_training_images_of_the_same_kind_are_compared():
    some, training = world(8, 1), world(300, 0)
    kin = protocol.alike(training, some)
    shown = {name: {a[name] for a in some.attributes} for name in shapes.ATTRIBUTES}
    assert 0 < len(kin.images) < 300 and len(kin.images) == len(kin.captions)
    assert all(a[name] in shown[name] for a in kin.attributes for name in shapes.ATTRIBUTES)
    bare = Cases(training.images, training.captions)
    assert protocol.alike(bare, some) is bare


def test_published_scores_stand_below_those_of_photographs(found):
    classes = {who: {"class": {"share": 0.5}} for who in ("samples", "training images")}
    photos = found | {"cas": {"images": 7, "accuracy": classes}}
    for numbers, published in ((found, False), (photos, True)):
        title, _, rows = protocol.protocol_tables({"test": numbers})[-1]
        assert (
            "classification accuracy score" in title and f"{numbers['cas']['images']} im" in title
        )
        assert (["PixelIQN, published", "74.3"] in [row[:2] for row in rows]) == published
