"""Metrics and pictures beside an artefact: true to its numbers, and readable without a network."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from safegene.pipeline.views import coefficients_picture, metrics, rates_picture
from tests.factories.runs import Sample

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    sample = Sample(tmp_path_factory.mktemp("views") / "ws")
    sample.family()
    sample.target("sentiment")
    return sample


def dots(picture: str) -> dict[str, float]:
    """Label of each line -> where its dot stands, as a share of the axis between its first and its last tick."""
    root = ElementTree.fromstring(picture)
    assert not any("href" in name for element in root.iter() for name in element.attrib)
    ticks = [float(e.attrib["x"]) for e in root.iter(f"{SVG}text") if e.get("text-anchor") == "middle"]
    labels = [str(e.text) for e in root.iter(f"{SVG}text") if e.get("text-anchor") == "end"]
    places = [float(e.attrib["cx"]) for e in root.iter(f"{SVG}circle")]
    shares = [(place - min(ticks)) / (max(ticks) - min(ticks)) for place in places]
    return dict(zip(labels, shares, strict=True))


def test_metrics_have_n_and_interval_beside_every_rate(sample: Sample) -> None:
    numbers = json.loads(metrics(sample.ws.verdict("sentiment")))
    assert numbers["hrr_after_n"] == 320
    assert numbers["hrr_after_low"] <= numbers["hrr_after"] <= numbers["hrr_after_high"]
    assert "hrr_incumbent" not in numbers, "what was not measured is no zero"
    assert numbers["passed"] == 1.0


def test_rates_stand_where_their_numbers_say(sample: Sample) -> None:
    numbers = json.loads(metrics(sample.ws.verdict("sentiment")))
    for label, share in dots(rates_picture(sample.ws.verdict("sentiment"))).items():
        measure, arm = label.partition(",")[0].split(" ")
        assert share == pytest.approx(numbers[f"{measure}_{arm}"], abs=0.001)
        assert label.endswith("n = 320") or measure == "coherence"


def test_a_layer_shows_its_mean_and_never_the_sum_of_its_directions(tmp_path: Path) -> None:
    rows = ["matrix,layer,direction,alpha", "a,0,0,1.0", "a,0,1,3.0", "b,1,0,-2.0", "b,1,1,nan"]
    (tmp_path / "coefficients.csv").write_text("\n".join(rows) + "\n")
    picture = coefficients_picture(tmp_path)
    shares = dots(picture)  # the axis goes from -2 to 3, and shows 0
    assert shares == {
        "layer 0, 2 coefficients": pytest.approx(0.8, abs=0.001),
        "layer 1, 1 coefficients": pytest.approx(0.0, abs=0.001),
    }
    assert ">0</text>" in picture
