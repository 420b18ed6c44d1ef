"""The safety-vector format: a round trip, equal bytes, and an attack for every MUST of its docstring."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safegene.errors import ArtifactError, DigestMismatch, FormatError
from safegene.vectors.linalg import LowRank
from safegene.vectors.vector import (
    HEADER,
    TENSORS,
    SafetyVector,
    read_factors,
    read_vector,
    write_factors,
    write_vector,
)
from safegene.workspace.digest import canonical_json, digest_bytes
from safegene.workspace.manifest import write_artefact

NAME = "model.layers.0.self_attn.q_proj.weight"
DIGEST = digest_bytes(b"x")


def a_vector(**changed: Any) -> SafetyVector:
    factors = {NAME: LowRank(torch.arange(8.0).reshape(4, 2), torch.ones(2, 3))}
    fields: dict[str, Any] = {
        "aligned": DIGEST,
        "degraded": (digest_bytes(b"y"),),
        "architecture": digest_bytes(b"z"),
        "factors": factors,
        "energy": {NAME: 0.75},
        "skipped": {"model.layers.0.mlp.up_proj.weight": "no surrogate changed it"},
    }
    return SafetyVector(**(fields | changed))


def save(vector: SafetyVector, out: Path, *, stage: str = "compress") -> Path:
    with write_artefact(out, stage=stage, params={}, inputs={}) as draft:
        write_vector(vector, draft.path)
    return out


def forged(
    tmp_path: Path,
    *,
    header: Callable[[Any], object] | None = None,
    tensors: dict[str, Tensor | None] | None = None,
    metadata: dict[str, str] | None = None,
    raw: bytes | None = None,
) -> Path:
    """A vector with valid digests and a broken rule."""
    out = tmp_path / "forged"
    with write_artefact(out, stage="compress", params={}, inputs={}) as draft:
        write_vector(a_vector(), draft.path)
        if header is not None:
            value = json.loads((draft.path / HEADER).read_text())
            header(value)
            (draft.path / HEADER).write_bytes(canonical_json(value) + b"\n")
        if raw is not None:
            (draft.path / HEADER).write_bytes(raw)
        if tensors is not None or metadata is not None:
            parts: dict[str, Tensor | None] = {f"{NAME}.up": torch.ones(4, 2), f"{NAME}.down": torch.ones(2, 3)}
            parts |= tensors or {}
            save_file({k: v for k, v in parts.items() if v is not None}, draft.path / TENSORS, metadata=metadata)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    found = read_vector(save(a_vector(dtype=dtype), tmp_path / "v"))
    assert (found.aligned, found.degraded, found.architecture) == (DIGEST, (digest_bytes(b"y"),), digest_bytes(b"z"))
    assert found.energy == {NAME: 0.75}
    assert found.skipped == a_vector().skipped
    assert found.dtype == dtype
    assert found.factors[NAME].up.dtype == torch.float32
    torch.testing.assert_close(found.factors[NAME].up, a_vector().factors[NAME].up)
    assert found.numel() == 14


def test_same_content_same_bytes(tmp_path: Path) -> None:
    one, two = (save(a_vector(), tmp_path / name) for name in ("one", "two"))
    for name in (TENSORS, HEADER, "manifest.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("name", [TENSORS, HEADER, "manifest.json"])
def test_every_flipped_byte_is_refused(tmp_path: Path, name: str) -> None:
    path = save(a_vector(), tmp_path / "v") / name
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 25)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ArtifactError):
            read_vector(tmp_path / "v")
    path.write_bytes(whole)
    read_vector(tmp_path / "v")


def test_rule_1_a_file_that_the_manifest_does_not_name(tmp_path: Path) -> None:
    (save(a_vector(), tmp_path / "v") / "more.txt").write_text("x")
    with pytest.raises(DigestMismatch, match=r"more\.txt"):
        read_vector(tmp_path / "v")


def test_rule_1_a_missing_file_a_missing_manifest_and_another_stage(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="got no manifest"):
        read_vector(tmp_path)
    with pytest.raises(FormatError, match="of stage 'compress'"):
        read_vector(save(a_vector(), tmp_path / "other", stage="extract"))
    with write_artefact(tmp_path / "half", stage="compress", params={}, inputs={}) as draft:
        (draft.path / "x").write_text("x")
    with pytest.raises(FormatError, match=r"vector\.json"):
        read_vector(tmp_path / "half")


@pytest.mark.parametrize("raw", [b"{}\n", b"[1]\n", b"not json", b'{"a":1,"a":2}\n', b'{"a":NaN}\n'])
def test_rule_2_another_header(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(FormatError):
        read_vector(forged(tmp_path, raw=raw))


def test_rule_2_json_that_is_not_canonical(tmp_path: Path) -> None:
    out = save(a_vector(), tmp_path / "v")
    pretty = json.dumps(json.loads((out / HEADER).read_text()), indent=1).encode()
    with pytest.raises(FormatError, match="canonical"):
        read_vector(forged(tmp_path, raw=pretty))


BROKEN: dict[str, Callable[[Any], object]] = {
    "2 another schema": lambda h: h.update(schema="safegene/vector/v2"),
    "2 a key too many": lambda h: h.update(more=1),
    "2 a key too few": lambda h: h.pop("skipped"),
    "3 aligned is no digest": lambda h: h.update(aligned="latest"),
    "3 architecture is no digest": lambda h: h.update(architecture=None),
    "3 no degraded model": lambda h: h.update(degraded=[]),
    "3 degraded is no digest": lambda h: h.update(degraded=["x"]),
    "4 no matrices": lambda h: h.update(matrices={}),
    "4 another name": lambda h: h.update(matrices={"bias": h["matrices"][NAME]}),
    "4 another shape": lambda h: h["matrices"][NAME].update(shape=[3, 4]),
    "4 a shape of three": lambda h: h["matrices"][NAME].update(shape=[4, 3, 1]),
    "4 another rank": lambda h: h["matrices"][NAME].update(rank=1),
    "4 rank 0": lambda h: h["matrices"][NAME].update(rank=0),
    "4 rank true": lambda h: h["matrices"][NAME].update(rank=True),
    "4 rank beyond the shape": lambda h: h["matrices"][NAME].update(rank=4),
    "4 energy above 1": lambda h: h["matrices"][NAME].update(energy=1.5),
    "4 energy unknown": lambda h: h["matrices"][NAME].update(energy=None),
    "4 a key more": lambda h: h["matrices"][NAME].update(extra=1),
    "5 no reason": lambda h: h.update(skipped={"a.weight": " "}),
    "5 both kept and skipped": lambda h: h.update(skipped={NAME: "reason"}),
    "6 another dtype": lambda h: h.update(dtype="bfloat16"),
    "6 an unknown dtype": lambda h: h.update(dtype="int8"),
    "6 a matrix without tensors": lambda h: h["matrices"].update({"a.weight": h["matrices"][NAME]}),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_rules_2_to_6_of_the_header(tmp_path: Path, rule: str) -> None:
    with pytest.raises(FormatError):
        read_vector(forged(tmp_path, header=BROKEN[rule]))


TENSOR_ATTACKS: dict[str, dict[str, Tensor | None]] = {
    "6 a factor missing": {f"{NAME}.up": None},
    "6 a tensor too many": {"bias": torch.ones(3)},
    "6 a matrix too many": {"a.weight.up": torch.ones(4, 2), "a.weight.down": torch.ones(2, 3)},
    "6 another shape": {f"{NAME}.up": torch.ones(5, 2)},
    "6 ranks that differ": {f"{NAME}.up": torch.ones(4, 1)},
    "6 three dimensions": {f"{NAME}.up": torch.ones(4, 2, 1)},
    "6 another dtype": {f"{NAME}.up": torch.ones(4, 2, dtype=torch.float64)},
    "7 NaN": {f"{NAME}.up": torch.full((4, 2), float("nan"))},
    "7 infinity": {f"{NAME}.down": torch.full((2, 3), float("inf"))},
}


@pytest.mark.parametrize("rule", TENSOR_ATTACKS)
def test_rules_6_and_7_of_the_tensors(tmp_path: Path, rule: str) -> None:
    with pytest.raises(FormatError):
        read_vector(forged(tmp_path, tensors=TENSOR_ATTACKS[rule]))


def test_rule_6_metadata(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="metadata"):
        read_vector(forged(tmp_path, metadata={"made": "today"}))


def test_rule_6_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x80\x04pickle")
    with pytest.raises(FormatError, match="safetensors"):
        read_factors(tmp_path / "x")


@pytest.mark.parametrize(
    "changed",
    [{"aligned": "x"}, {"degraded": ()}, {"energy": {}}, {"energy": {NAME: 2.0}}, {"dtype": "float16"}],
    ids=str,
)
def test_a_vector_that_breaks_a_rule_is_not_written(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        write_vector(a_vector(**changed), tmp_path)
    assert not list(tmp_path.iterdir())


def test_factors_that_overflow_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="finite"):
        write_factors({NAME: LowRank(torch.full((2, 1), float("inf")), torch.ones(1, 2))}, tmp_path / "f")
    with pytest.raises(FormatError, match="none"):
        write_factors({}, tmp_path / "f")
    assert not list(tmp_path.iterdir())
