"""A vector is published in one workspace and fetched in another; whatever else lies at its place is refused."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import (
    ContaminatedSample,
    DigestMismatch,
    FormatError,
    ParamsError,
    PromotionRefused,
    SafegeneError,
    StaleArtifact,
)
from safegene.ledger import bundles
from safegene.ledger.bundle_source import bundle_fingerprint, look_at_bundle
from safegene.ledger.bundles import INDEX, LIMITS, OUTSIDE, SIGNATURE
from safegene.ledger.keys import create_key
from safegene.pipeline.publish import PublishedVector, publish_vector
from safegene.pipeline.runner import run_stage
from safegene.pipeline.stage_file import FETCH_VECTOR, fetching, making, stages_of, write_stages
from safegene.pipeline.stages.promote import revoke
from safegene.pipeline.table import PIPELINE, pipeline_of, stage_named
from safegene.report import write_report
from safegene.vectors import vector
from safegene.workspace.digest import digest_file
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import save_targets
from safegene.workspace.plain_yaml import load_yaml
from tests.factories.bundles import PNG, ROOT, new_workspace, publisher_workspace, sign_again
from tests.factories.commands import call
from tests.factories.hub import HubStandIn
from tests.pipeline.test_table import params_of

FETCH = stage_named("fetch-vector")
EVERY = (*LIMITS, *OUTSIDE)


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return publisher_workspace(tmp_path_factory.mktemp("publisher") / "ws")


@pytest.fixture(scope="module")
def original(publisher: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in a folder, to be looked at only."""
    folder = tmp_path_factory.mktemp("bundle") / "v1"
    publish_vector(publisher, str(folder), licence="Apache-2.0")
    return folder


@pytest.fixture(scope="module")
def blank(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Another team's workspace, before it fetched anything; to be copied."""
    return new_workspace(tmp_path_factory.mktemp("user") / "ws", vector="file:///nowhere", publisher="0" * 64)


@pytest.fixture
def bundle(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of the test's own, and a cache that holds none."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(original, tmp_path / "v1"))


@pytest.fixture
def user(blank: Workspace, bundle: Path, tmp_path: Path) -> Workspace:
    ws = Workspace(Path(shutil.copytree(blank.root, tmp_path / "user")))
    return use(ws, f"file://{bundle}", key_of(bundle))


def key_of(bundle: Path) -> str:
    return str(json.loads((bundle / INDEX).read_bytes())["publisher"]["keyid"])


def use(ws: Workspace, uri: str, publisher: str) -> Workspace:
    """Name a vector in ``params.yaml``, as people do."""
    lines = (ws.root / "params.yaml").read_text().splitlines()
    changed = {"  vector:": f"  vector: {uri}", "  publisher:": f"  publisher: '{publisher}'"}
    named = [next((new for old, new in changed.items() if line.startswith(old)), line) for line in lines]
    (ws.root / "params.yaml").write_text("\n".join(named) + "\n")
    return ws


def test_another_workspace_gets_the_publisher_s_bytes(publisher: Workspace, user: Workspace) -> None:
    run_stage(FETCH, user)
    assert (bundles.HEADER, bundles.TENSORS) == (vector.HEADER, vector.TENSORS)
    for name in ("vector", "selection"):
        assert read_manifest(getattr(user, name)).digest == read_manifest(getattr(publisher, name)).digest
    assert not user.degraded.exists()
    assert not user.delta.exists()
    assert read_manifest(user.published).facts["publisher"] == user.params.family.publisher
    page = write_report(user).read_text()
    assert str(user.params.family.publisher) in page
    assert "not run yet: degrade" not in page


def test_prompts_are_published_by_digest_only(publisher: Workspace, original: Path) -> None:
    published = b"".join(path.read_bytes() for path in original.iterdir())
    prompts = [json.loads(line)["prompt"] for line in (publisher.prompts / "safety.jsonl").read_text().splitlines()]
    assert len(prompts) > 100
    assert not [prompt for prompt in prompts if prompt.encode() in published]
    assert str(publisher.root).encode() not in published
    card = (original / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert json.loads((original / INDEX).read_bytes())["vector"] in card


@pytest.mark.parametrize("name", EVERY)
def test_a_changed_byte_is_refused(user: Workspace, bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(SafegeneError, match="expected"):
        run_stage(FETCH, user)
    assert not user.published.exists()
    assert not user.vector.exists()


@pytest.mark.parametrize("how", ["gone", "longer", "a link", "a folder"])
def test_a_file_that_is_not_the_signed_one_is_refused(user: Workspace, bundle: Path, how: str) -> None:
    for name in EVERY:
        path = bundle / name
        data = path.read_bytes()
        path.unlink()
        if how == "longer":
            path.write_bytes(data + b"\n" * (OUTSIDE.get(name, 0) + 1))
        elif how == "a link":
            path.symlink_to("/dev/zero")
        elif how == "a folder":
            path.mkdir()
        with pytest.raises(SafegeneError, match="expected"):
            run_stage(FETCH, user)
        assert not user.published.exists(), name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(data)
    run_stage(FETCH, user)


def test_an_unknown_key_is_refused(user: Workspace, bundle: Path) -> None:
    pinned = key_of(bundle)
    other = sign_again(bundle, create_key())
    with pytest.raises(DigestMismatch, match=f"publisher {pinned}.*got one of {other}") as error:
        run_stage(FETCH, user)
    assert "ask the publisher" in error.value.remedy


def test_a_bundle_is_looked_at_before_its_key_is_pinned(original: Path, bundle: Path, tmp_path: Path) -> None:
    shown = call(tmp_path, "vector", "show", str(original)).stdout
    assert f"publisher      {key_of(original)}" in shown
    assert "licence        Apache-2.0" in shown
    content = json.loads(call(tmp_path, "vector", "show", str(original), "--json").stdout)
    assert content["digest"] == digest_file(original / INDEX)
    assert not (tmp_path / "cache").exists(), "nothing is fetched"
    (bundle / INDEX).write_bytes((bundle / INDEX).read_bytes().replace(b"Apache-2.0", b"Apache-3.0"))
    with pytest.raises(DigestMismatch):
        look_at_bundle(bundle.as_uri())
    other, arms = create_key(), {"before": 0.5, "after": 0.04}
    rates = {"hrr": {arm: {"rate": rate, "interval": [0.0, 1.0], "n": 50, "lost": 0} for arm, rate in arms.items()}}
    effect = [{"target": "support", "outcome": "pass", "judge": "j", "rates": rates}]
    sign_again(bundle, other, effect=effect)
    shown = call(tmp_path, "vector", "show", str(bundle)).stdout
    assert "support        pass; harmful responses: before 50.0%, after 4.0%" in shown
    key = json.loads((bundle / INDEX).read_bytes())["publisher"] | {"keyid": key_of(original)}
    sign_again(bundle, other, publisher=key)
    with pytest.raises(DigestMismatch, match="expected a vector of the publisher"):
        look_at_bundle(bundle.as_uri())


def test_another_key_cannot_take_the_publisher_s_id(user: Workspace, bundle: Path) -> None:
    """The id is that of the key's bytes, whatever id the bundle gives it."""
    pinned, other = key_of(bundle), create_key()
    sign_again(bundle, other)
    key = json.loads((bundle / INDEX).read_bytes())["publisher"] | {"keyid": pinned}
    sign_again(bundle, other, publisher=key)
    with pytest.raises(DigestMismatch, match=f"got one of {other}"):
        run_stage(FETCH, user)


def test_a_signature_of_another_bundle_is_refused(user: Workspace, bundle: Path, original: Path) -> None:
    (bundle / "README.md").write_text("another card\n")
    sign_again(bundle, key_of(bundle))
    shutil.copyfile(original / SIGNATURE, bundle / SIGNATURE)
    with pytest.raises(DigestMismatch, match="got one of others"):
        run_stage(FETCH, user)


def test_another_aligned_model_is_refused(original: Path, tmp_path: Path) -> None:
    bundle = original
    named = {"vector": f"file://{bundle}", "publisher": key_of(bundle)}
    ws = new_workspace(tmp_path / "ws", aligned="tiny://sentiment?seed=0", **named)
    with pytest.raises(DigestMismatch, match="expected a vector of the aligned model") as error:
        run_stage(FETCH, ws)
    assert "family.aligned" in error.value.remedy
    assert not ws.vector.exists()


def test_a_bundle_that_was_replaced_is_refused_until_somebody_follows(user: Workspace, bundle: Path) -> None:
    pin = bundle_fingerprint(f"file://{bundle}", key_of(bundle))
    save_targets(user.targets_file, user.targets.model_copy(update={"vector": pin}))
    run_stage(FETCH, user)
    (bundle / "README.md").write_text("a second version, or an old one\n")
    sign_again(bundle, key_of(bundle))
    with pytest.raises(StaleArtifact, match=f"expected the bundle {pin}"):
        run_stage(FETCH, user)


def _index(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda _: changes


def _file(name: str, data: bytes) -> Callable[[Path], dict[str, Any]]:
    def change(bundle: Path) -> dict[str, Any]:
        (bundle / name).write_bytes(data)
        return {}

    return change


def _more_files(bundle: Path) -> dict[str, Any]:
    files = json.loads((bundle / INDEX).read_bytes())["files"]
    return {"files": {**files, "../../outside": files["README.md"]}}


def _large(bundle: Path) -> dict[str, Any]:
    files = json.loads((bundle / INDEX).read_bytes())["files"]
    return {"files": {**files, "README.md": {**files["README.md"], "bytes": 1 << 40}}}


def _facts(bundle: Path) -> dict[str, Any]:
    from safegene.workspace.digest import canonical_json, digest_json

    manifest = json.loads((bundle / "vector-manifest.json").read_bytes())
    manifest["facts"]["matrices"] = "<script>"
    (bundle / "vector-manifest.json").write_bytes(canonical_json(manifest) + b"\n")
    return {"vector": digest_json(manifest)}


def _shape(bundle: Path) -> dict[str, Any]:
    from safegene.workspace.digest import canonical_json

    header = json.loads((bundle / "vector.json").read_bytes())
    name = next(iter(header["matrices"]))
    header["matrices"][name] |= {"shape": [1 << 20, 1 << 20], "rank": 1 << 20}
    (bundle / "vector.json").write_bytes(canonical_json(header) + b"\n")
    return {}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_more_files, id="a name outside of the bundle"),
        pytest.param(_large, id="a size over the limit"),
        pytest.param(_facts, id="a fact that is no number"),
        pytest.param(_shape, id="factors of a matrix that the model does not have"),
        pytest.param(_index(schema="safegene/vector-bundle/v9"), id="another format"),
        pytest.param(_index(aligned="sha256:" + "0" * 64), id="another model"),
        pytest.param(_index(vector="sha256:" + "0" * 64), id="another vector"),
        pytest.param(_index(selection="sha256:" + "0" * 64), id="another selection"),
        pytest.param(_index(shots={"x.jsonl": "sha256:" + "0" * 64}), id="shots of other sets"),
        pytest.param(_index(licence="x" * 400), id="an endless licence"),
        pytest.param(_file("vector.safetensors", b"\x80\x04pickle"), id="a pickle"),
        pytest.param(_file("vector.safetensors", struct.pack("<Q", 1 << 63)), id="an endless header"),
        pytest.param(_file("scores.csv", b"layer,score\n0,=1+1\n"), id="a formula"),
        pytest.param(_file("scores.csv", b"layer,score\n-cmd,1\n"), id="a formula that begins with a minus"),
        pytest.param(_file("scores.png", b"<svg onload=x>"), id="markup in place of a picture"),
        pytest.param(_file("scores.png", PNG[:16] + struct.pack(">II", 1 << 20, 1 << 20)), id="an endless picture"),
        pytest.param(_file("shots.json", b"[]\n"), id="shots of another form"),
    ],
)
def test_a_pinned_publisher_may_not_send_anything(
    user: Workspace, bundle: Path, change: Callable[[Path], dict[str, Any]]
) -> None:
    """The publisher's signature is right; what it signed is not a vector of this model."""
    sign_again(bundle, key_of(bundle), **change(bundle))
    assert key_of(bundle) == user.params.family.publisher
    with pytest.raises(SafegeneError, match="expected"):
        run_stage(FETCH, user)
    assert not user.published.exists()
    assert not user.vector.exists()


def test_other_files_beside_a_bundle_are_never_opened(user: Workspace, bundle: Path) -> None:
    for name in (".gitattributes", "weights.pt", "vector.py"):
        (bundle / name).write_bytes(b"\x80\x04planted")
    run_stage(FETCH, user)
    assert not [path for path in user.family.rglob("*") if path.name in (".gitattributes", "weights.pt", "vector.py")]


@pytest.mark.parametrize("what", ["prompt", "behaviour"])
def test_a_gate_that_asks_what_the_vector_was_made_with_is_refused(user: Workspace, what: str) -> None:
    shot = json.loads((user.prompts / "degrade.jsonl").read_text().splitlines()[0])
    rows = (user.prompts / "gate.jsonl").read_text().splitlines()
    row = json.loads(rows[0]) | ({"prompt": f"  {shot['prompt'].upper()}!"} if what == "prompt" else {})
    row |= {"behaviour": next(b for b in _behaviours(user) if b)} if what == "behaviour" else {}
    (user.prompts / "gate.jsonl").write_text("\n".join([json.dumps(row), *rows[1:]]) + "\n")
    with pytest.raises(ContaminatedSample, match=f"got {row['id']}, of file://"):
        run_stage(FETCH, user)


def _behaviours(ws: Workspace) -> Iterator[str]:
    for name in ("degrade.jsonl", "safety.jsonl"):
        for line in (ws.prompts / name).read_text().splitlines():
            yield json.loads(line)["behaviour"]


def test_what_may_not_be_published(publisher: Workspace, user: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="expected a licence"):
        publish_vector(publisher, str(tmp_path / "a"))
    with pytest.raises(ParamsError, match="made in this workspace"):
        publish_vector(user, str(tmp_path / "a"), licence="MIT")
    ws = Workspace(Path(shutil.copytree(publisher.root, tmp_path / "own")))
    manifest = json.loads((ws.degraded / "manifest.json").read_bytes())
    manifest["params"]["judge"] = {"url": "https://judge.example.org/v1"}
    (ws.degraded / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SafegeneError, match="expected"):
        publish_vector(ws, str(tmp_path / "a"), licence="MIT")
    assert not (tmp_path / "a").exists()


def test_a_revoked_vector_is_not_published(publisher: Workspace, tmp_path: Path) -> None:
    ws = Workspace(Path(shutil.copytree(publisher.root, tmp_path / "own")))
    revoke(ws, read_manifest(ws.delta).digest, "made from poisoned prompts")
    with pytest.raises(PromotionRefused, match="poisoned prompts"):
        publish_vector(ws, str(tmp_path / "a"), licence="MIT")


def test_a_place_with_another_bundle_is_kept(publisher: Workspace, bundle: Path) -> None:
    again = publish_vector(publisher, str(bundle), licence="Apache-2.0")
    assert again.uri == f"file://{bundle}"
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(SafegeneError, match="new or empty folder"):
        publish_vector(publisher, str(bundle), licence="MIT")
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_it_travels_by_s3(publisher: Workspace, user: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import mock_aws

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        from safegene.checkpoints.sources import s3

        s3.new_client().create_bucket(Bucket="vectors")
        words = ("vector", "publish", "s3://vectors/team/v1", "--licence", "MIT", "--json")
        done = PublishedVector(**json.loads(call(publisher.root, *words).stdout))
        run_stage(FETCH, use(user, done.uri, done.publisher))
        assert read_manifest(user.vector).digest == done.vector
        assert publish_vector(publisher, "s3://vectors/team/v1", licence="MIT").digest == done.digest
        with pytest.raises(SafegeneError, match="expected a new or empty prefix"):
            publish_vector(publisher, "s3://vectors/team/v1", licence="Apache-2.0")


def test_it_travels_by_the_hub(publisher: Workspace, user: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubStandIn()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    try:
        words = ("vector", "publish", "hf://org/vector", "--licence", "Apache-2.0", "--json")
        done = PublishedVector(**json.loads(call(publisher.root, *words).stdout))
        assert done.uri == f"hf://org/vector@{hub.heads['org/vector', 'main']}"
        run_stage(FETCH, use(user, done.uri, done.publisher))
        assert read_manifest(user.vector).digest == done.vector
        hub.damaged = "vector.json"
        shutil.rmtree(os.environ["SAFEGENE_CACHE"])
        with pytest.raises(DigestMismatch, match=r"expected vector\.json with"):
            run_stage(FETCH, user)
    finally:
        hub.stop()


def test_the_file_of_stages_follows_the_parameters(user: Workspace) -> None:
    template = (ROOT / "dvc.yaml").read_text()
    assert write_stages(user)
    assert not write_stages(user)
    path = user.root / "dvc.yaml"
    stages = load_yaml(path)["stages"]
    table = [stage for stage in pipeline_of(user.params) if stage.tracked]
    assert list(stages) == [stage.name for stage in table]
    for stage in table:
        entry = stages[stage.name].get("do", stages[stage.name])
        named = [name.replace("{target}", "${key}").replace("{task}", "${item.task}") for name in stage.inputs]
        assert entry.get("deps", []) == named
        outputs = [name.replace("{target}", "${key}") for name in (stage.output, *stage.others)]
        assert entry["outs"] == outputs
        assert params_of(entry) == [key.replace("{target}", "${key}") for key in stage.params]
    assert not [name for stage in table for name in stage.inputs if "degraded" in name or "delta" in name]
    assert making(path.read_text()) == template
    assert fetching(template) == path.read_text()


def test_what_people_changed_in_the_file_of_stages_stays() -> None:
    template = (ROOT / "dvc.yaml").read_text()
    changed = template.replace("desc: the verdict", "desc: OUR verdict") + "\nartifacts:\n  x: {path: y}\n"
    assert "OUR verdict" in fetching(changed)
    assert making(fetching(changed)) == changed
    with pytest.raises(ParamsError, match="expected the stage select"):
        fetching(template.replace("  select:\n", "  chosen:\n"))
    assert stages_of(FETCH_VECTOR).keys() == {"fetch-vector"}


def test_a_stage_of_the_other_kind_of_workspace_is_refused(user: Workspace, publisher: Workspace) -> None:
    made = [stage for stage in PIPELINE if stage.vector == "made"]
    assert len(made) == 4
    for stage in made:
        with pytest.raises(ParamsError, match="is fetched"):
            run_stage(stage, user)
    with pytest.raises(ParamsError, match="is made by degrade"):
        run_stage(FETCH, publisher)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("vector: hf://org/v", "family.vector and family.publisher together"),
        ("publisher: '" + "0" * 64 + "'", "family.vector and family.publisher together"),
        ("vector: hf://org/v\n  publisher: alice", "publisher"),
        ("vector: hf://org/v\n  publisher: '" + "0" * 64 + "'\n  degraded: ['hf://org/d']", "no family.degraded"),
    ],
)
def test_a_vector_needs_its_publisher(user: Workspace, family: str, wrong: str) -> None:
    text = "".join(line for line in (ROOT / "params.yaml").read_text().splitlines(True) if "  degraded:" not in line)
    (user.root / "params.yaml").write_text(text.replace("family:\n", f"family:\n  {family}\n", 1))
    with pytest.raises(ParamsError, match=wrong):
        _ = user.params


def test_malformed_indexes_are_one_sentence(user: Workspace, bundle: Path) -> None:
    good = (bundle / INDEX).read_bytes()
    for data in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a":1,"a":2}',
        good + b"\n",
        good.replace(b'":', b'": ', 1),
    ):
        (bundle / INDEX).write_bytes(data)
        with pytest.raises(FormatError, match=INDEX):
            run_stage(FETCH, user)
