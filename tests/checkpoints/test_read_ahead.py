"""Reading ahead: every block once, in order, within the bound, and errors where the blocks are taken."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safegene.checkpoints.header import read_header
from safegene.checkpoints.read_ahead import blocks_of, read_ahead
from safegene.checkpoints.values import check_values, digest_and_check
from safegene.errors import CheckpointError
from safegene.workspace.digest import digest_file

TENSORS = {
    "matrix": torch.randn(37, 11, generator=torch.Generator().manual_seed(0)),
    "bf16": torch.randn(9, 3, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "half": torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(2)).half(),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "double": torch.randn(5, generator=torch.Generator().manual_seed(3)).double(),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("numbers", [1, 40, 10**9])
def test_the_blocks_of_a_tensor_are_the_tensor(file: Path, numbers: int) -> None:
    specs = read_header(file)
    for name, tensor in TENSORS.items():
        groups = [[(file, block), (file, block)] for block in blocks_of(specs[name], numbers=numbers)]
        with read_ahead(groups, max_bytes=1) as read:
            halves = [[one.clone() for one in group] for group in read]
        assert all(torch.equal(first, second) for first, second in halves)
        parts = [first for first, _ in halves]
        assert torch.equal(torch.cat(parts) if tensor.ndim else parts[0], tensor)
        assert all(part.numel() <= max(numbers, part.numel() // max(1, len(part))) for part in parts if part.ndim)


def test_a_file_that_ends_early_is_an_error_where_it_is_taken(file: Path) -> None:
    spec = read_header(file)["matrix"]
    with file.open("r+b") as cut:
        cut.truncate(spec.end - 8)
    with pytest.raises(CheckpointError, match="bytes of matrix"), read_ahead([[(file, spec)]], max_bytes=1) as read:
        list(read)
    groups = [[(file.with_name("none"), spec)]]
    with pytest.raises(FileNotFoundError), read_ahead(groups, max_bytes=1) as read:
        list(read)


def test_leaving_early_ends_the_thread(file: Path) -> None:
    before = set(threading.enumerate())
    spec = read_header(file)["matrix"]
    with read_ahead([[(file, spec)]] * 100, max_bytes=1) as read:
        assert torch.equal(next(read)[0], TENSORS["matrix"])
    assert set(threading.enumerate()) <= before, "threads of earlier tests may end meanwhile"


def test_one_pass_gives_the_digest_and_checks_the_numbers(file: Path, tmp_path: Path) -> None:
    specs = list(read_header(file).values())
    assert digest_and_check(file, specs) == digest_file(file)
    check_values(file, specs)
    for value, words in ((float("nan"), "finite"), (2.0**21, r"2\^21")):
        bad = tmp_path / "bad.safetensors"
        save_file(TENSORS | {"matrix": TENSORS["matrix"].index_fill(0, torch.tensor([36]), value)}, bad)
        for check in (digest_and_check, check_values):
            with pytest.raises(CheckpointError, match=f"{words}.*matrix|matrix.*{words}"):
                check(bad, read_header(bad).values())
