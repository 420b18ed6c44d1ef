"""Ranks by number, by energy and by budget; the energies that are stated are those of the factors."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from safegene.errors import DigestMismatch, ParamsError
from safegene.pipeline.stages.compress import choose_ranks, compress
from safegene.vectors.linalg import LowRank, energy, product_svd
from safegene.vectors.vector import read_factors, read_vector
from safegene.workspace.params import CompressParams
from tests.factories.artefacts import files, made, payload


def factors(*values: float) -> LowRank:
    """(6, 5) with these singular values."""
    left, _ = torch.linalg.qr(torch.randn(6, len(values), generator=torch.Generator().manual_seed(0)))
    right, _ = torch.linalg.qr(torch.randn(5, len(values), generator=torch.Generator().manual_seed(1)))
    root = torch.tensor(values).sqrt()
    return LowRank(left * root, (right * root).T)


PATCH = {"a.weight": factors(4.0, 2.0, 1.0), "b.weight": factors(8.0, 0.1)}
SPECTRA = {name: product_svd(one)[1].square() for name, one in PATCH.items()}
TOTALS = {"a.weight": 21.0, "b.weight": 64.01}


def chosen(**params: Any) -> dict[str, int]:
    return {name: one.rank for name, one in choose_ranks(CompressParams(**params), PATCH, SPECTRA, TOTALS).items()}


def test_a_rank_is_kept_where_there_is_one() -> None:
    assert chosen(rank=2) == {"a.weight": 2, "b.weight": 2}
    assert chosen(rank=9) == {"a.weight": 3, "b.weight": 2}


@pytest.mark.parametrize(("share", "expected"), [(0.5, (1, 1)), (0.9, (2, 1)), (0.96, (3, 1)), (1.0, (3, 2))])
def test_the_fewest_columns_that_hold_the_energy(share: float, expected: tuple[int, int]) -> None:
    assert tuple(chosen(rank=None, energy=share).values()) == expected


@pytest.mark.parametrize(("columns", "expected"), [(5, (3, 2)), (4, (3, 1)), (3, (2, 1)), (2, (1, 1)), (1, (0, 1))])
def test_the_budget_takes_the_least_energy_first(columns: int, expected: tuple[int, int]) -> None:
    size = columns * 11 * 4 / 2**20
    assert tuple(chosen(rank=3, max_mebibytes=size).values()) == expected
    assert tuple(chosen(rank=3, max_mebibytes=size / 2, dtype="bfloat16").values()) == expected


def test_a_budget_for_nothing_is_refused() -> None:
    with pytest.raises(ParamsError, match="at least one column"):
        chosen(rank=3, max_mebibytes=1e-9)


def test_energies_are_shares_of_the_whole_delta() -> None:
    kept = choose_ranks(CompressParams(rank=1), PATCH, SPECTRA, TOTALS)
    assert kept["a.weight"].energy == pytest.approx(16 / 21)
    assert kept["a.weight"].size == 44


def test_the_vector_is_the_truncated_delta(tmp_path: Path) -> None:
    compress(delta=made().delta, out=tmp_path / "v", params=CompressParams(rank=2))
    vector, delta = read_vector(tmp_path / "v"), read_factors(made().delta / "delta.safetensors")
    facts = payload(made().delta, "delta.json")
    assert vector.aligned == facts["aligned"]
    assert len(vector.degraded) == 2
    assert vector.factors.keys() == delta.keys()
    for name, one in vector.factors.items():
        assert one.rank == 2
        lost = energy(delta[name].dense() - one.dense()) / energy(delta[name].dense())
        whole = facts["matrices"][name]
        share = sum(whole["energies"]) / whole["total"]
        assert vector.energy[name] == pytest.approx(share * (1 - lost), rel=1e-3)
    rows = list(csv.DictReader((tmp_path / "v" / "energies.csv").read_text().splitlines()))
    assert [(r["matrix"], int(r["rank"])) for r in rows] == [(name, 2) for name in vector.factors]
    assert sum(int(r["bytes"]) for r in rows) == 4 * vector.numel()


def test_a_matrix_that_the_budget_drops_is_named(tmp_path: Path) -> None:
    compress(delta=made().delta, out=tmp_path / "v", params=CompressParams(rank=4, max_mebibytes=0.02))
    vector = read_vector(tmp_path / "v")
    assert vector.skipped
    assert set(vector.skipped.values()) == {"no column fits compress.max_mebibytes"}
    assert len(vector.skipped) + len(vector.factors) == 28
    assert (tmp_path / "v" / "vector.safetensors").stat().st_size < 0.02 * 2**20 + 10_000


def test_bfloat16_halves_the_bytes(tmp_path: Path) -> None:
    small = compress(delta=made().delta, out=tmp_path / "v", params=CompressParams(dtype="bfloat16", rank=4))
    assert (
        small.facts["bytes"] * 2
        == compress(delta=made().delta, out=tmp_path / "w", params=CompressParams(rank=4)).facts["bytes"]
    )
    one, two = read_vector(tmp_path / "v").factors, read_vector(tmp_path / "w").factors
    for name in one:
        torch.testing.assert_close(one[name].up, two[name].up, rtol=0.01, atol=1e-4)


def test_the_same_delta_gives_the_same_bytes(tmp_path: Path) -> None:
    compress(delta=made().delta, out=tmp_path / "v", params=CompressParams(rank=4))
    assert files(tmp_path / "v") == files(made().vector)


def test_a_changed_delta_is_refused(tmp_path: Path) -> None:
    (tmp_path / "delta").mkdir()
    for name, data in files(made().delta).items():
        (tmp_path / "delta" / name).write_bytes(data if name != "delta.safetensors" else data[:-1] + b"\x01")
    with pytest.raises(DigestMismatch):
        compress(delta=tmp_path / "delta", out=tmp_path / "v", params=CompressParams(rank=4))
