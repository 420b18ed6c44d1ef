"""What the tests of the report share: a finished run, and its page."""

import pytest

from safegene.report import write_report
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
def page(sample: Sample) -> str:
    """The report on it."""
    return write_report(sample.ws, live=sample.live("sentiment")).read_text()
