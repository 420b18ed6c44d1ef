"""One plain file, from a folder, the Hub's data sets (a stand-in of its API) or S3 (a mock, or a real server)."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from safegene.checkpoints.sources import files, s3
from safegene.checkpoints.sources.files import read_file
from safegene.datasets.adding import add_suite
from safegene.datasets.suite_library import suite_names
from safegene.errors import DigestMismatch, ParamsError, SourceError
from safegene.workspace.digest import digest_bytes
from safegene.workspace.layout import Workspace
from tests.factories.hub import HubStandIn
from tests.factories.library import GOALS, advbench, request, workspace

FILE = advbench()
OF_THE_HUB = "hf://datasets/org/goals/data/harmful_behaviors.csv"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return workspace(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    stand_in = HubStandIn()
    monkeypatch.setenv("HF_ENDPOINT", stand_in.endpoint)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield stand_in
    stand_in.stop()


@pytest.fixture(params=["moto, a mock", "the server of SAFEGENE_TEST_S3"])
def box(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a bucket with one file, ``sets/goals.csv``."""
    server = os.environ.get("SAFEGENE_TEST_S3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    if request.param.startswith("the server"):
        if not server:
            pytest.skip("SAFEGENE_TEST_S3 is unset: only the mock was tried")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        yield from _bucket()
        return
    from moto import mock_aws

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield from _bucket()


def _bucket() -> Iterator[str]:
    client = s3.new_client()
    name = f"suites-{os.getpid()}-{time.time_ns()}"
    client.create_bucket(Bucket=name)
    client.put_object(Bucket=name, Key="sets/goals.csv", Body=FILE)
    yield name
    client.delete_object(Bucket=name, Key="sets/goals.csv")
    client.delete_bucket(Bucket=name)


# A folder.


def test_a_file_of_this_machine_has_a_name_and_bytes_but_no_address(tmp_path: Path) -> None:
    (tmp_path / "goals.csv").write_bytes(FILE)
    found = read_file(str(tmp_path / "goals.csv"))
    assert (found.name, found.data, found.uri, found.revision) == ("goals.csv", FILE, "", "")
    assert read_file(f"file://{tmp_path}/goals.csv") == found
    (tmp_path / "with blanks.csv").write_bytes(FILE)
    assert read_file(f"file://{tmp_path}/with%20blanks.csv").name == "with blanks.csv"


def test_in_a_folder_it_is_the_only_file_of_the_sets_names(tmp_path: Path) -> None:
    (tmp_path / "goals.csv").write_bytes(FILE)
    wanted = ("behaviors.csv", "harmful-behaviors.csv")
    with pytest.raises(SourceError, match=r"one of behaviors\.csv or harmful-behaviors\.csv in .*, got none"):
        read_file(str(tmp_path), wanted)
    (tmp_path / "behaviors.csv").write_bytes(FILE)
    assert read_file(str(tmp_path), wanted).name == "behaviors.csv"
    (tmp_path / "harmful-behaviors.csv").write_bytes(FILE)
    with pytest.raises(SourceError, match=r"got behaviors\.csv, harmful-behaviors\.csv") as refused:
        read_file(str(tmp_path), wanted)
    assert refused.value.remedy == "name the file itself"
    with pytest.raises(SourceError, match="expected one of a file, not a folder"):
        read_file(str(tmp_path))


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (str(tmp_path / "absent"), str(tmp_path / "pipe"), "/dev/zero", "a\0b"):
        with pytest.raises(SourceError, match="expected a file, got none"):
            read_file(place)
    for place in ("https://example.org/goals.csv", "tiny://../goals.csv", "gs://bucket/goals.csv"):
        with pytest.raises(SourceError, match="expected a source of the form"):
            read_file(place)
    monkeypatch.setattr(files, "LIMIT", len(FILE) - 1)
    (tmp_path / "goals.csv").write_bytes(FILE)
    with pytest.raises(SourceError, match=f"expected at most {len(FILE) - 1} bytes, got {len(FILE)}"):
        read_file(str(tmp_path / "goals.csv"))


def test_the_tiny_family_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "aligned").write_bytes(FILE)
    with pytest.raises(SourceError, match="got 'tiny://aligned'"):
        read_file("tiny://aligned")


# The Hub.


def test_a_data_set_of_the_hub_is_pinned_to_its_commit(hub: HubStandIn, ws: Workspace) -> None:
    old = hub.publish("datasets/org/goals", {"data/harmful_behaviors.csv": FILE})
    new = hub.publish("datasets/org/goals", {"data/harmful_behaviors.csv": advbench(GOALS[:2])})
    asked = replace(request(ws), source=OF_THE_HUB, origin="")
    card = add_suite(ws, asked).card
    assert (card.source, card.revision, card.rows) == (OF_THE_HUB, f"commit:{new}", {"harmful": 2})
    assert set(card.files) == {"harmful_behaviors.csv"}
    pinned = OF_THE_HUB.replace("goals/", f"goals@{old}/", 1)
    card = add_suite(ws, replace(asked, name="old", source=pinned, sha256=digest_bytes(FILE))).card
    assert (card.source, card.revision, card.rows) == (pinned, f"commit:{old}", {"harmful": 4})
    assert not [path for _, path, _ in hub.served if path.endswith(".py")]


def test_what_the_hub_does_not_have_is_named(hub: HubStandIn) -> None:
    hub.publish("datasets/org/goals", {"data/harmful_behaviors.csv": FILE, "README.md": b""})
    with pytest.raises(SourceError, match=r"expected test\.csv in hf.*, got README\.md, data/harmful_behaviors\.csv"):
        read_file("hf://datasets/org/goals/test.csv")
    for place in ("hf://datasets/org/absent/a.csv", "hf://datasets/org/goals@absent/a.csv"):
        with pytest.raises(SourceError, match="got 'not found'"):
            read_file(place)


@pytest.mark.parametrize(
    "place",
    ["hf://org/model", "hf://datasets/org/goals", "hf://datasets/goals/a.csv", "hf://datasets/org/goals/../a.csv"],
)
def test_another_place_on_the_hub_is_refused_unasked(hub: HubStandIn, place: str) -> None:
    with pytest.raises(SourceError, match=r"expected hf://datasets/ORG/NAME\[@REVISION\]/FILE"):
        read_file(place)
    assert hub.served == []


def test_a_large_file_of_the_hub_is_refused_before_a_byte_of_it_comes(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("datasets/org/goals", {"data/harmful_behaviors.csv": FILE})
    monkeypatch.setattr(files, "LIMIT", 10)
    with pytest.raises(SourceError, match=f"expected at most 10 bytes, got {len(FILE)}, from hf://datasets"):
        read_file(OF_THE_HUB)
    assert not [path for _, path, _ in hub.served if "resolve" in path]


def test_a_file_damaged_on_its_way_from_the_hub_is_refused(hub: HubStandIn, ws: Workspace) -> None:
    hub.publish("datasets/org/goals", {"large.bin": FILE})
    asked = replace(request(ws), source="hf://datasets/org/goals/large.bin", origin="")
    hub.damaged = "large.bin"
    with pytest.raises(SourceError, match=r"expected large\.bin with sha256:.*, got sha256:.*, from hf://datasets/org"):
        add_suite(ws, asked)
    assert suite_names(ws) == []
    hub.damaged = ""
    assert add_suite(ws, asked).card.files == {"large.bin": digest_bytes(FILE)}


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"expected an answer for hf://datasets/org/goals.* from http://127.0.0.1:9"):
        read_file(OF_THE_HUB)


# S3.


def test_an_object_of_s3_becomes_a_suite_with_its_address(box: str, ws: Workspace) -> None:
    uri = f"s3://{box}/sets/goals.csv"
    card = add_suite(ws, replace(request(ws), source=uri, origin="")).card
    assert (card.source, card.revision) == (uri, "")
    assert card.files == {"goals.csv": digest_bytes(FILE)}
    with pytest.raises(ParamsError, match="for files on this machine only"):
        add_suite(ws, replace(request(ws), name="more", source=uri))
    with pytest.raises(DigestMismatch, match=f"from {uri}"):
        add_suite(ws, replace(request(ws), name="more", source=uri, origin="", sha256="sha256:" + "0" * 64))


def test_templates_and_translations_may_lie_there_too(box: str, ws: Workspace) -> None:
    client = s3.new_client()
    client.put_object(Bucket=box, Key="t.jsonl", Body=b'{"id": "s", "text": "story: {prompt}"}\n')
    client.put_object(Bucket=box, Key="zh.csv", Body=advbench([f"zh {goal}" for goal in GOALS]))
    translations = {"zh": f"s3://{box}/zh.csv"}
    card = add_suite(ws, request(ws, templates=f"s3://{box}/t.jsonl", translations=translations)).card
    client.delete_object(Bucket=box, Key="t.jsonl")
    client.delete_object(Bucket=box, Key="zh.csv")
    assert card.rows == {"harmful": 4, "wrapped": 8}
    assert set(card.files) == {"ours.csv", "t.jsonl", "zh.csv"}


def test_what_a_bucket_does_not_have_is_named(box: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=rf"expected an answer for s3://{box}/absent\.csv, got"):
        read_file(f"s3://{box}/absent.csv")
    with pytest.raises(SourceError, match="expected s3://BUCKET/KEY"):
        read_file(f"s3://{box}")
    monkeypatch.setattr(files, "LIMIT", 10)
    with pytest.raises(SourceError, match=f"expected at most 10 bytes, got {len(FILE)}"):
        read_file(f"s3://{box}/sets/goals.csv")


@pytest.mark.parametrize("place", ["s3://key:canary@bucket/a.csv", "hf://datasets/o/n/a.csv?token=canary"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(place: str) -> None:
    with pytest.raises(SourceError, match="without secrets") as refused:
        read_file(place)
    assert "canary" not in refused.value.message
