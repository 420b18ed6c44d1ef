import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

for name, value in {
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys and Prefect's database in a folder of the tests; the model cache is kept, since it is content-addressed."""
    box = tmp_path_factory.mktemp("user")
    before = dict(os.environ)
    os.environ["SAFEGENE_KEYS"] = str(box / "keys")
    os.environ["PREFECT_HOME"] = str(box / "prefect")
    os.environ.pop("PREFECT_API_URL", None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Public evaluation sets, read where they lie."""
    folder = os.environ.get("SAFEGENE_TEST_DATA")
    if not folder:
        pytest.skip("SAFEGENE_TEST_DATA is unset: the public evaluation sets are not at hand")
    return Path(folder)


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
