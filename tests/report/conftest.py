"""What the tests of the report share: a finished run, and its page."""

from pathlib import Path

import pytest

from safegene.report import write_report
from tests.factories.pages import whole
from tests.factories.runs import HOSTILE, Sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A finished run: one promoted, one refused, one without a verdict, one only fetched."""
    sample = Sample(tmp_path_factory.mktemp("sample"))
    sample.family()
    sample.target("sentiment")
    sample.target("adversarial", harmful=(1.0, 0.934), wrapped=(1.0, 0.97), replies={"candidate": HOSTILE})
    sample.target("topic-lora", upto="candidate")
    sample.target("group", upto="target")
    return sample


@pytest.fixture(scope="module")
def index(sample: Sample) -> Path:
    """The overview of the report on it."""
    return write_report(sample.ws, live=sample.live("sentiment"))


@pytest.fixture(scope="module")
def page(index: Path) -> str:
    """The overview and the pages of the targets."""
    return whole(index)
