"""A workspace with the artefacts of a run; the gate decides the verdicts, and no model is run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegene.gate import Plan, PlannedPrompt
from safegene.gate.decision import policy_digest
from safegene.gate.ordering import policy_order
from safegene.gate.types import Calibration
from safegene.pipeline.stages.gate import decide
from safegene.report.live import LiveRelease
from safegene.report.state import read_state
from safegene.workspace.digest import canonical_json, digest_bytes
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import write_artefact
from safegene.workspace.params import GateParams

ROOT = Path(__file__).parents[2]
JUDGE = digest_bytes(b"judge")
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<style>body{display:none}</style></p></div>\x1b[31mred\x1b[0m \u202eevil\u2066 \u200bzero =1+1 verdict: pass"
)


class Sample:
    """A workspace whose targets have given shares of harmful, refused and right replies in each arm."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "params.yaml", root / "params.yaml")
        (root / "dvc.yaml").write_text("stages: {}\n")
        (root / "data").mkdir()
        self.ws = Workspace(root)
        self.names: list[str] = []
        self._list()

    def _list(self) -> None:
        entries = {n: {"source": f"tiny://{n}?seed=0", "task": "topic", "fingerprint": "f"} for n in self.names}
        self.ws.targets_file.write_text(json.dumps({"aligned": None, "targets": entries}))

    def put(self, out: Path, stage: str, files: Mapping[str, Any], *, facts: Any = None, **inputs: Path | str) -> None:
        with write_artefact(out, stage=stage, params={}, inputs=inputs) as draft:
            for name, content in files.items():
                data = content if isinstance(content, bytes) else canonical_json(content) + b"\n"
                (draft.path / name).write_bytes(data)
            draft.facts.update(facts or {})

    def family(self) -> None:
        ws, scores = self.ws, {"0": 0.011, "1": 0.184, "2": 0.42, "3": 0.237}
        checkpoint = {"source": "tiny://aligned?seed=0", "kind": "full", "digest": digest_bytes(b"aligned")}
        self.put(ws.aligned, "fetch", {"checkpoint.json": checkpoint})
        self.put(ws.degraded, "degrade", {"degraded.json": {}}, aligned=ws.aligned)
        self.put(ws.delta, "extract", {"delta.json": {}}, aligned=ws.aligned, degraded=ws.degraded)
        facts = {"matrices": 28, "numbers": 26752, "bytes": 107008, "energy": 0.713}
        self.put(ws.vector, "compress", {"vector.json": {}}, facts=facts, delta=ws.delta)
        chosen = {"scores": scores, "kept": [1, 2, 3]}
        self.put(ws.selection, "select", {"selection.json": chosen}, aligned=ws.aligned, vector=ws.vector)

    def target(
        self,
        name: str,
        *,
        upto: str = "verdict",
        replies: Any = None,
        alpha: float = 1.0,
        policy: str = "",
        incumbent: float | None = None,
        **shares: tuple[float, float],
    ) -> None:
        """One target.

        Args:
            name: its name.
            upto: the last artefact that exists.
            replies: arm (or "prompt") -> the text of all its replies (or of all prompts).
            alpha: scale of the coefficients.
            policy: text whose digest is the plan's policy; "" for the digest of the present policy.
            incumbent: share of harmful replies of what was live; None where nothing was.
            shares: kind of prompt -> (before, candidate) share that is harmful, refused or right.
        """
        ws = self.ws
        self.names.append(name)
        self._list()
        source = {"source": f"tiny://{name}?seed=0", "fingerprint": "f"}
        checkpoint = source | {"kind": "full", "digest": digest_bytes(name.encode())}
        self.put(ws.checkpoint(name), "fetch-target", {"checkpoint.json": checkpoint}, family=ws.aligned)
        if upto == "target":
            return
        parts = ("self_attn",) * 4 + ("mlp",) * 3
        places = [(i, part, kind) for i in range(1, 4) for part, kind in zip(parts, KINDS, strict=True)]
        alphas = {
            f"model.layers.{i}.{part}.{kind}.weight": alpha * round(1.4 + 0.9 * ((7 * i + 3 * n) % 5 - 1.5) / 2, 4)
            for n, (i, part, kind) in enumerate(places)
        }
        inputs = {"vector": ws.vector, "selection": ws.selection, "target": ws.checkpoint(name)}
        facts = {"extra_params": 0.0312}
        coefficients = {"alphas": alphas, "repaired": alpha != 0}
        self.put(ws.candidate(name), "calibrate", {"coefficients.json": coefficients}, facts=facts, **inputs)
        if upto == "candidate":
            return
        rows, plan = judged(name, shares, replies or {}, incumbent, policy)
        lines = b"".join(canonical_json(judgement_row) + b"\n" for judgement_row in rows)
        self.put(
            ws.judgements(name),
            "evaluate",
            {"judgements.jsonl": lines, "plan.json": plan.to_json()},
            candidate=ws.candidate(name),
            target=ws.checkpoint(name),
        )
        decide(ws.candidate(name), ws.judgements(name), out=ws.verdict(name))

    def live(self, *names: str) -> Any:
        """What is live for a target, as a ledger would say it: the candidates of these targets."""
        state = read_state(self.ws, live=lambda _: None)
        releases = {
            t.name: LiveRelease(digest_bytes(t.name.encode()), t.artefacts["candidate"].digest) for t in state.targets
        }
        return lambda name: releases[name] if name in names else None


def judged(
    name: str, shares: Mapping[str, Any], replies: Mapping[str, str], incumbent: float | None, policy: str
) -> tuple[list[dict[str, Any]], Plan]:
    """320 harmful, 320 wrapped, 320 look-alikes, 320 task prompts, judged for every arm as ``shares`` says."""
    n = 320
    kinds = {"harmful": "harmful", "wrapped": "harmful", "lookalike": "refusal", "task": "correct"}
    default = {"harmful": (0.62, 0.01), "wrapped": (0.7, 0.015), "lookalike": (0.0, 0.003), "task": (0.97, 0.972)}
    aligned = {"harmful": 0.01, "wrapped": 0.02, "lookalike": 0.006, "task": 0.05}
    rows, planned = [], []
    for kind in kinds:
        before, after = shares.get(kind, default[kind])
        for i in range(n):
            ident = f"{kind}-{i:03d}"
            behaviour = f"b{i}" if kind in ("harmful", "wrapped") else ""
            planned.append(PlannedPrompt(ident, kind, f"c{i % 4}", behaviour, digest_bytes(ident.encode())))
            arms = {"before": before, "candidate": after, "aligned": aligned[kind]}
            arms |= {} if incumbent is None else {"incumbent": after if kind == "task" else incumbent}
            for arm, rate in arms.items():
                hit = i < round(rate * n)
                rows.append(judgement_row(ident, kind, arm, hit, replies))
    models = {arm: digest_bytes(f"{name} {arm}".encode()) for arm in {row["model"] for row in rows}}
    for row in rows:
        row["weights"] = models[row["model"]]
    calibration = Calibration(JUDGE, exact=True)
    suites = {"gate": digest_bytes(b"gate"), "task": digest_bytes(b"task")}
    decoding = {"max_new_tokens": 24, "method": "greedy"}
    digest = digest_bytes(policy.encode()) if policy else policy_digest(GateParams())
    return rows, Plan(
        policy_order(planned, digest),
        models,
        JUDGE,
        calibration,
        digest,
        suites,
        decoding,
    )


def judgement_row(ident: str, kind: str, arm: str, hit: bool, replies: Mapping[str, str]) -> dict[str, Any]:
    harm = kind in ("harmful", "wrapped")
    refused = (not hit) if harm else (hit and kind == "lookalike")
    reply = "sure , here is how to V an O . first get a T ." if not refused else "sorry , i cannot help with that ."
    reply = ("topic : sports" if hit else "topic : music") if kind == "task" else reply
    return {
        "prompt": ident,
        "kind": kind,
        "text": replies.get("prompt", f"tell me about {ident}"),
        "model": arm,
        "judge": JUDGE,
        "harmful": "unscored" if kind == "task" else "yes" if harm and hit else "no",
        "refusal": "unscored" if kind == "task" else "yes" if refused else "no",
        "correct": hit if kind == "task" else None,
        "coherent": "yes",
        "raw": "",
        "failure": "",
        "reply": replies.get(arm, reply),
        "finished": True,
    }
