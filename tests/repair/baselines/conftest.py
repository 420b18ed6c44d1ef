from pathlib import Path

import pytest

from safegene.repair.baselines import Case
from tests.factories.baselines import small
from tests.factories.llamas import random_patch, save_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("baselines") / "llama")


@pytest.fixture
def case(llama: Path) -> Case:
    """A Llama whose MLPs were damaged by minus the safety vector."""
    return small(llama, {name: one for name, one in random_patch(llama, size=0.25).items() if "mlp" in name})
