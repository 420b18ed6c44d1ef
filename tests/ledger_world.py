"""A small workspace for the ledger's tests: real artefacts with real manifests, a few bytes each, and no model."""

import shutil
from pathlib import Path

from safegene.digest import canonical_json, digest_file, digest_json
from safegene.ledger import create_key, write_public_key
from safegene.manifest import write_artefact
from safegene.store import LocalStore, PreconditionFailed
from safegene.workspace import Workspace

PARAMS = """
family: {{aligned: "tiny://aligned?seed=0"}}
degrade: {{surrogates: {{benign: {{pools: [benign]}}}}}}
evaluate: {{judge: {{kind: grammar}}}}
promote: {{ledger: "{ledger}"}}
"""
TARGET = "sentiment"


def make_workspace(root: Path, *, ledger: str = "ledger", outcome: str = "pass", keys: Path | None = None) -> Workspace:
    """A workspace with one target, run up to its verdict, and a key to sign with."""
    ws = Workspace(root)
    ws.prompts.mkdir(parents=True)
    ws.tasks.mkdir()
    (root / "params.yaml").write_text(PARAMS.format(ledger=ledger))
    (root / "dvc.yaml").write_text("stages: {}\n")
    ws.targets_file.write_text("targets: {}\n")
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "a"}\n')
    (ws.prompts / "safety.jsonl").write_bytes(b'{"id": "b"}\n')
    (ws.tasks / "sentiment.jsonl").write_bytes(b'{"id": "c"}\n')
    write_public_key(create_key(keys), root / ws.params.promote.public_key, keys)
    make_family(ws)
    make_target(ws, outcome=outcome)
    return ws


def make_family(ws: Workspace, *, rank: int = 4) -> None:
    with write_artefact(ws.aligned, stage="fetch", params={}, inputs={}) as draft:
        _json(draft.path / "checkpoint.json", {"source": "tiny://aligned?seed=0", "digest": digest_json("aligned")})
    with write_artefact(ws.vector, stage="compress", params={"rank": rank}, inputs={"delta": digest_json(1)}) as draft:
        (draft.path / "vector.safetensors").write_bytes(bytes(range(64)) * rank)
        _json(draft.path / "vector.json", {"rank": rank})
    inputs = {"aligned": ws.aligned, "vector": ws.vector}
    with write_artefact(ws.selection, stage="select", params={}, inputs=inputs) as draft:
        _json(draft.path / "selection.json", {"kept": [0, 1], "scores": {"0": 1.0, "1": 0.5}})


def make_target(ws: Workspace, target: str = TARGET, *, outcome: str = "pass", alpha: float = 1.0) -> None:
    """The target's artefacts from its checkpoint to a verdict of ``outcome``; ``alpha`` tells candidates apart."""
    with write_artefact(ws.checkpoint(target), stage="fetch", params={}, inputs={"family": ws.aligned}) as draft:
        _json(draft.path / "checkpoint.json", {"source": f"tiny://{target}?seed=0", "digest": digest_json(target)})
    make_candidate(ws, target, alpha=alpha)
    make_verdict(ws, target, outcome=outcome)


def make_candidate(ws: Workspace, target: str = TARGET, *, alpha: float = 1.0) -> None:
    inputs: dict[str, Path | str] = {
        "aligned": ws.aligned,
        "target": ws.checkpoint(target),
        "vector": ws.vector,
        "selection": ws.selection,
        "prompts": digest_file(ws.prompts / "safety.jsonl"),
        "task": ws.tasks / "sentiment.jsonl",
    }
    with write_artefact(ws.candidate(target), stage="calibrate", params={}, inputs=inputs) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(f"adapter {alpha}".encode() * 20)
        _json(draft.path / "adapter_config.json", {"r": 4})
        _json(draft.path / "coefficients.json", {"alpha": alpha})


def make_verdict(ws: Workspace, target: str = TARGET, *, outcome: str = "pass") -> None:
    """Judgements against what ``incumbent.json`` pins, and a verdict of them."""
    inputs: dict[str, Path | str] = {
        "aligned": ws.aligned,
        "target": ws.checkpoint(target),
        "candidate": ws.candidate(target),
        "prompts": digest_file(ws.prompts / "gate.jsonl"),
    }
    if ws.incumbent(target).is_file():
        inputs["incumbent"] = ws.incumbent(target)
    policy = digest_json(ws.params.gate.model_dump(mode="json"))
    with write_artefact(ws.judgements(target), stage="evaluate", params={}, inputs=inputs) as draft:
        _json(draft.path / "plan.json", {"suites": {"gate": digest_json("gate")}, "prompts": [], "judge": "grammar"})
        (draft.path / "judgements.jsonl").write_bytes(b'{"prompt": "a"}\n')
    made = {"candidate": ws.candidate(target), "judgements": ws.judgements(target)}
    endpoints = [{"name": "hrr_direct", "outcome": outcome}]
    verdict = {"outcome": outcome, "reason": f"a {outcome}", "endpoints": endpoints, "policy": policy}
    with write_artefact(ws.verdict(target), stage="gate", params={}, inputs=made) as draft:
        _json(draft.path / "verdict.json", {**verdict, "judge": {"identity": "grammar"}, "rates": {"hrr": {}}})


def flip_byte(path: Path, at: int = -2) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def copy_workspace(ws: Workspace, to: Path) -> Workspace:
    shutil.copytree(ws.root, to)
    return Workspace(to)


class Deaf(LocalStore):
    """A store that ignores conditions, as some S3 gateways do."""

    def _put(self, key: str, data: bytes, *, expected: str | None) -> str:
        try:
            return super()._put(key, data, expected=expected)
        except PreconditionFailed:
            path = self.root / key
            path.write_bytes(data)
            return "whatever"


def _json(path: Path, value: object) -> None:
    path.write_bytes(canonical_json(value) + b"\n")
