from pathlib import Path

import pytest

from safegene.errors import ParamsError
from safegene.workspace.layout import Workspace
from safegene.workspace.mining_params import MiningParams
from safegene.workspace.params import (
    CalibrateParams,
    Target,
    Targets,
    load_params,
    load_targets,
    save_targets,
)
from safegene.workspace.plain_yaml import dump_yaml, load_yaml
from safegene.workspace.plugins import BASELINES

TEMPLATE = (Path(__file__).parents[2] / "params.yaml").read_text()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("margin_hrr: 0.05|margin_hrr: 1.0e+9", "gate.margin_hrr"),
        ("margin_hrr: 0.05|margin_hrr: 0", "gate.margin_hrr"),
        ("alpha: 0.05|alpha: 0.9", "gate.alpha"),
        ("\n  rank: 64|\n  rank: 64\n  energy: 0.9", "compress"),
        ("\n  rank: 64|\n  rnak: 64", "compress.rnak"),
        ("granularity: core|granularity: column", "calibrate.granularity"),
        ("max_extra: 0.01|max_extra: 0", "calibrate.max_extra"),
        ("max_extra: 0.01|max_extra: 1.5", "calibrate.max_extra"),
        ("max_extra: 0.01|baseline: {method: vibes}", "calibrate.baseline"),
        (
            "max_extra: 0.01|baseline: {method: vibes}",
            "expected a 'method' out of enchtable, finetune, one_shot",
        ),
        ("max_extra: 0.01|baseline: {gamma: 1}", "'method'"),
        ("max_extra: 0.01|baseline: resta", "calibrate.baseline"),
        ("max_extra: 0.01|baseline: {method: resta, gama: 1}", "calibrate.baseline.resta.gama"),
        ("max_extra: 0.01|baseline: {method: safelora, number: 3}", "exactly one of threshold and number"),
        ("aligned: tiny://aligned?seed=0|aligned: somewhere", "family.aligned"),
        ("kind: grammar|kind: vibes", "evaluate.judge"),
        ("kind: grammar|kind: grammar, calibration: ../judge.json", "data/judges"),
        ("kind: grammar|kind: grammar, calibration: data/judges/../judge.json", "data/judges"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, line: str, key: str) -> None:
    old, new = line.split("|")
    assert old in TEMPLATE
    with pytest.raises(ParamsError) as error:
        load_params(written(tmp_path, TEMPLATE.replace(old, new, 1)))
    assert key in error.value.message
    assert "params.yaml" in error.value.message


NUMBERS = {
    "gate.margin_hrr": "0.05",
    "gate.block_prompts": "15",
    "gate.min_prompts": "60",
    "evaluate.batch_size": "128",
    "evaluate.early_stop": "true",
    "calibrate.max_extra": "0.01",
    "fetch.max_gibibytes": "200.0",
    "select.threshold": "0.05",
    "validate.min_rows": "32",
    "degrade.stop_hrr": "0.6",
    "flow.commit": "true",
}


@pytest.mark.parametrize("other", ['"{}"', "true", "1.5e+400", ".nan", ".inf", "yes", "[{}]", "null", "0x1p3"])
@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_and_booleans_are_of_their_type(tmp_path: Path, key: str, other: str) -> None:
    """Neither text nor a boolean is a number, no number is a boolean, and NaN and infinity are none."""
    name, value = key.split(".")[1], NUMBERS[key]
    if (value, other) == ("true", "true"):
        other = "1"
    assert f"  {name}: {value}" in TEMPLATE
    text = TEMPLATE.replace(f"  {name}: {value}", f"  {name}: {other.format(value)}", 1)
    with pytest.raises(ParamsError, match=name if not other.startswith((".", "1.5e")) else "plain YAML"):
        load_params(written(tmp_path, text))


def test_a_number_of_a_baseline_is_strict_too(tmp_path: Path) -> None:
    text = TEMPLATE.replace("max_extra: 0.01", 'max_extra: 0.01\n  baseline: {method: resta, gamma: "0.5"}', 1)
    with pytest.raises(ParamsError, match="gamma"):
        load_params(written(tmp_path, text))


PLACES = [
    '""',
    ".",
    "./",
    ".git",
    ".git/x",
    ".dvc",
    "data",
    "data/x",
    "DATA",
    "reports",
    "~/",
    "~",
    "../x",
    "a/../../x",
]
PLACES += ["params.yaml", "dvc.lock", '"a\\tb"', '" "', "http://x/y", "file://data/x", "ledger.seen", "a/.git"]


@pytest.mark.parametrize("place", [*PLACES, "s3://", "s3://u:p@b/x", "s3:/b", "s3://b/../x"])
def test_a_ledger_where_something_else_is_written_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(ParamsError, match="promote.ledger"):
        load_params(written(tmp_path, TEMPLATE.replace("ledger: ledger", f"ledger: {place}", 1)))


@pytest.mark.parametrize("place", [p for p in PLACES if "://" not in p])
def test_a_public_key_where_something_else_is_written_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(ParamsError, match="promote.public_key"):
        load_params(written(tmp_path, TEMPLATE.replace("public_key: ledger.pub", f"public_key: {place}", 1)))


def test_places_that_only_the_file_system_shows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path or a link into what others write, a folder around the workspace, the cache, and the keys."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "keys"))
    ws = Workspace(tmp_path / "ws")
    ws.data.mkdir(parents=True)
    (ws.root / "link").symlink_to(ws.data)
    below = [ws.data / "x", ws.root / ".git", ws.root, tmp_path, tmp_path / "cache" / "x", tmp_path / "keys"]
    for place in [*map(str, below), "link/x", f"file://{ws.data}"]:
        written(ws.root, TEMPLATE.replace("ledger: ledger", f"ledger: {place}", 1))
        with pytest.raises(ParamsError, match=r"promote\.ledger to be a place that nothing else writes"):
            _ = ws.params
    written(ws.root, TEMPLATE.replace("public_key: ledger.pub", "public_key: ledger/ledger.pub", 1))
    with pytest.raises(ParamsError, match="outside of the ledger, which it verifies"):
        _ = ws.params


@pytest.mark.parametrize(
    "place", ["ledger", "book/keeping", "/srv/ledger", "file:///srv/ledger", "s3://b", "s3://b/x.y/z"]
)
def test_a_ledger_of_its_own_is_accepted(tmp_path: Path, place: str) -> None:
    ws = Workspace(tmp_path)
    written(tmp_path, TEMPLATE.replace("ledger: ledger", f"ledger: {place}", 1))
    assert ws.params.promote.ledger == place


@pytest.mark.parametrize("method", sorted(BASELINES))
def test_every_baseline_is_chosen_by_its_name(tmp_path: Path, method: str) -> None:
    """With its own defaults, beside keys of ours that it does not use."""
    text = TEMPLATE.replace("max_extra: 0.01", f"max_extra: 0.01\n  baseline: {{method: {method}}}", 1)
    calibrate = load_params(written(tmp_path, text)).calibrate
    assert calibrate.baseline is not None
    assert calibrate.baseline.method == method
    assert CalibrateParams.model_validate(calibrate.model_dump(mode="json")) == calibrate


def test_the_template_repairs_by_ours_and_adds_a_hundredth(tmp_path: Path) -> None:
    calibrate = load_params(written(tmp_path, TEMPLATE)).calibrate
    assert calibrate == CalibrateParams(mining=MiningParams(rounds=1))
    assert (calibrate.baseline, calibrate.granularity, calibrate.max_extra) == (None, "core", 0.01)


@pytest.mark.parametrize(
    "text",
    [
        "a: .nan",
        "a: .inf",
        "a: 1\na: 2",
        "a: &x [1]\nb: *x",
        "a: !!python/object/apply:os.system ['true']",
        "a: [1",
        "1: a",
        "true: a",
        'a: !!float "0.05"',
        "a: \x00",
    ],
)
def test_yaml_beyond_plain_data_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ParamsError, match="plain YAML"):
        load_yaml(written(tmp_path, text))


def test_plain_scalars_are_those_of_yaml_1_2_which_dvc_reads(tmp_path: Path) -> None:
    text = "a: 3e-4\nb: 010\nc: yes\nd: 1:30\ne: 2026-01-01\nf: \ng: ~\nh: 0o17\ni: 0x1f\nj: 1_000\nk: -.5\nl: True"
    values = [3e-4, 10, "yes", "1:30", "2026-01-01", None, None, 15, 31, "1_000", -0.5, True]
    assert list(load_yaml(written(tmp_path, text)).values()) == values


@pytest.mark.parametrize(
    "text",
    [
        "a: [file:///models]",
        "a: {b: s3://bucket/x}",
        "a: [x, y:z]",
        "a: [{k: 1:30}]",
        "a: {file:///x: 1}",
        "a: {b: [\n  hf://org\n]}",
    ],
)
def test_text_with_a_colon_between_brackets_is_quoted_since_dvc_cannot_read_it(tmp_path: Path, text: str) -> None:
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    with pytest.raises(YAMLFileCorruptedError):
        parse_yaml(text, "params.yaml")
    with pytest.raises(ParamsError, match="without quotes between brackets") as refused:
        load_yaml(written(tmp_path, text))
    assert "quotes" in refused.value.remedy
    for good in ('a: ["file:///models"]', "a:\n  - file:///models", "a: [b: c, d]", "a: {b: c}", "a: b:c"):
        assert load_yaml(written(tmp_path, good)) == parse_yaml(good, "params.yaml")


@pytest.mark.parametrize(
    "text", ["1e9", "010", "yes", "12e4567", "0o17", "null", "", "~", ".nan", "2026-01-01", "1:30"]
)
def test_text_is_written_so_that_it_is_read_as_text(tmp_path: Path, text: str) -> None:
    assert load_yaml(written(tmp_path, dump_yaml({text: text}))) == {text: text}


def test_sources_are_written_as_paths_or_as_the_hubs_names(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    text = TEMPLATE.replace("tiny://aligned?seed=0", "org/chat@v1").replace(
        "degraded: []", "degraded: [./models, models]"
    )
    text = text.replace("folders: []", "folders: [/srv/new models]")
    params = load_params(written(tmp_path, text))
    here = f"file://{tmp_path}/models"
    assert params.family.aligned == "hf://org/chat@v1"
    assert params.family.degraded == (here, here)
    assert params.watch.folders == ("file:///srv/new%20models",)


@pytest.mark.parametrize("line", ['cron: "*/5 * * * *"|cron: "0 99 * * *"', 'cron: "0 3 * * *"|cron: "0 0 31 2 *"'])
def test_a_cron_expression_that_never_fires_is_refused_where_it_is_read(tmp_path: Path, line: str) -> None:
    old, new = line.split("|")
    assert old in TEMPLATE
    with pytest.raises(ParamsError, match="cron") as refused:
        load_params(written(tmp_path, TEMPLATE.replace(old, new, 1)))
    assert "expected" in refused.value.message


def test_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml")
    assert "init" in error.value.remedy


def test_targets_survive_a_round_trip_and_leave_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "targets.yaml"
    targets = Targets(aligned="x", targets={"a": Target(source="file:///a", task="t", fingerprint="f")})
    save_targets(path, targets)
    assert load_targets(path) == targets
    assert [p.name for p in tmp_path.iterdir()] == ["targets.yaml"]


@pytest.mark.parametrize("name", ["../up", "A", "a.b", "", "a b", "-a", "x" * 64])
def test_a_targets_name_is_a_safe_file_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "targets.yaml"
    path.write_text(f"targets:\n  {name!r}: {{source: 'file:///a', task: t, fingerprint: f}}\n")
    with pytest.raises(ParamsError):
        load_targets(path)
