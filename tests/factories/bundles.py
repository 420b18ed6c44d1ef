"""Published vectors for tests: a family whose vector is made of a few random factors, and bundles of it."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
import yaml

from safegene.checkpoints.record import read_record
from safegene.checkpoints.structure import read_structure
from safegene.ledger.bundles import INDEX, LIMITS, SIGNATURE, Bundle, BundleFile, publisher_key, sign_bundle
from safegene.ledger.keys import ensure_key, load_signer, public_key, write_public_key
from safegene.pipeline.stages.fetch import fetch
from safegene.repair.selection import new_selection
from safegene.vectors.linalg import LowRank
from safegene.vectors.vector import SafetyVector, write_vector
from safegene.workspace.digest import canonical_json, digest_bytes, digest_file, digest_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest, write_artefact
from safegene.workspace.params import Targets, save_targets

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 8, 8) + b"\x08\x00\x00\x00\x00"


def new_workspace(
    root: Path, *, vector: str | None = None, publisher: str | None = None, aligned: str = "tiny://aligned?seed=0"
) -> Workspace:
    """The template without Git and DVC, its aligned model fetched; ``family.vector`` where it is given."""
    root.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, root / name)
    shutil.copytree(ROOT / "data" / "prompts", root / "data" / "prompts")
    (root / "data" / "tasks").mkdir()
    ws = Workspace(root)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["family"] |= {"aligned": aligned, "vector": vector, "publisher": publisher}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    save_targets(ws.targets_file, Targets())
    write_public_key(ensure_key(), root / "ledger.pub")
    fetch(aligned, out=ws.aligned)
    return ws


def publisher_workspace(root: Path) -> Workspace:
    """A workspace that has a vector, its selection, and what they were made from."""
    ws = new_workspace(root)
    prompts = {name: digest_file(ws.prompts / name) for name in ("degrade.jsonl", "safety.jsonl")}
    safety = {"safety.jsonl": prompts["safety.jsonl"]}
    with write_artefact(ws.degraded, stage="degrade", params={}, inputs={"aligned": ws.aligned, **prompts}) as draft:
        (draft.path / "degraded.json").write_text("{}")
    inputs: dict[str, Path | str] = {"aligned": ws.aligned, "degraded": ws.degraded, **safety}
    with write_artefact(ws.delta, stage="extract", params={}, inputs=inputs) as draft:
        (draft.path / "delta.json").write_text("{}")
    with write_artefact(ws.vector, stage="compress", params={"rank": 2}, inputs={"delta": ws.delta}) as draft:
        held = random_vector(ws)
        write_vector(held, draft.path)
        (draft.path / "energies.csv").write_text(
            "matrix,rank,energy,bytes\n" + f"{next(iter(held.factors))},2,0.9,64\n"
        )
        draft.facts.update(matrices=len(held.factors), numbers=held.numel(), bytes=4 * held.numel(), energy=0.9)
    inputs = {**inputs, "vector": ws.vector}
    with write_artefact(ws.selection, stage="select", params={}, inputs=inputs) as draft:
        (draft.path / "selection.json").write_bytes(new_selection({0: 0.5, 1: 0.1}, [0]).content)
        (draft.path / "scores.csv").write_text("layer,score\n0,0.5\n1,0.1\n")
        (draft.path / "scores.png").write_bytes(PNG)
        draft.facts.update(kept=1, layers=2)
    return ws


def random_vector(ws: Workspace) -> SafetyVector:
    """Factors of rank 2 for the matrices of the aligned model's first layer."""
    record, draw = read_record(ws.aligned), torch.Generator().manual_seed(0)
    factors = {
        name: LowRank(torch.randn(matrix.shape[0], 2, generator=draw), torch.randn(2, matrix.shape[1], generator=draw))
        for name, matrix in read_structure(ws.aligned).matrices.items()
        if ".layers.0." in name
    }
    energy = dict.fromkeys(factors, 0.9)
    return SafetyVector(record.digest, (digest_json("degraded"),), record.architecture, factors, energy)


def sign_again(folder: Path, keyid: str, **changes: Any) -> str:
    """Let a publisher sign what a bundle's folder holds now; ``changes`` replace keys of the index."""
    signer = load_signer((public_key(keyid),))
    old = json.loads((folder / INDEX).read_bytes())
    files = {
        name: {"sha256": digest_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in LIMITS
        if (folder / name).is_file()
    }
    content = {**old, "files": {**old["files"], **files}, "publisher": publisher_key(signer), **changes}
    data = canonical_json(content) + b"\n"
    digests = {INDEX: digest_bytes(data), **{name: str(one["sha256"]) for name, one in content["files"].items()}}
    from safegene.ledger.model_signature import sign_files

    (folder / INDEX).write_bytes(data)
    (folder / SIGNATURE).write_bytes(sign_files("vector", digests, signer, keyid=content["publisher"]["keyid"]))
    return str(content["publisher"]["keyid"])


def add_publication(ws: Workspace, keyid: str, *, uri: str = "file:///vectors/v1") -> None:
    """Make a workspace of `tests.factories.ledger` one whose vector was published by a key."""
    signer = load_signer((public_key(keyid),))
    names = ("bundle.json", "bundle.sig", "README.md", "shots.json")
    receipts = [f"{name}-manifest.json" for name in ("aligned", "degraded", "delta")]
    content = {name: b"{}\n" for name in names}
    content |= {name: read_manifest(ws.aligned).content for name in receipts}
    sizes = {name: BundleFile(sha256=digest_bytes(content.get(name, b"x")), bytes=1) for name in LIMITS}
    made = {name: read_manifest(folder).digest for name, folder in (("vector", ws.vector), ("selection", ws.selection))}
    bundle = Bundle(
        safegene="0",
        publisher=publisher_key(signer),
        licence="Apache-2.0",
        base_model="",
        aligned=digest_json("aligned"),
        shots={},
        effect=(),
        files=sizes,
        vector=made["vector"],
        selection=made["selection"],
    )
    content |= {INDEX: bundle.content, SIGNATURE: sign_bundle(bundle, signer)}
    params = yaml.safe_load((ws.root / "params.yaml").read_text())
    params["family"] |= {"vector": uri, "publisher": bundle.publisher["keyid"]}
    (ws.root / "params.yaml").write_text(yaml.safe_dump(params))
    inputs: dict[str, Path | str] = {"aligned": ws.aligned, "bundle": digest_bytes(bundle.content), **made}
    inputs["prompts"] = digest_file(ws.prompts / "gate.jsonl")
    chosen = {"vector": uri, "publisher": bundle.publisher["keyid"]}
    with write_artefact(ws.published, stage="fetch-vector", params=chosen, inputs=inputs) as draft:
        for name, data in content.items():
            (draft.path / name).write_bytes(data)
        draft.facts.update(publisher=bundle.publisher["keyid"], licence="Apache-2.0", base_model="")
