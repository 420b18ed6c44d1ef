"""Surrogates: degraded as far as asked, kept in fp32, gone on with after a kill."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import CheckpointError, EmptySample, JudgeError
from safegene.models.loading import load_model
from safegene.models.patching import add_patch
from safegene.pipeline import surrogates
from safegene.pipeline.stages import degrade as stage
from safegene.pipeline.stages.degrade import degrade
from safegene.repair.training import supervised
from safegene.tiny.build import build
from safegene.vectors.vector import read_surrogates
from safegene.workspace.manifest import Manifest
from safegene.workspace.params import DegradeParams, JudgeParams, Surrogate
from tests.factories.artefacts import DATA, DEGRADE, GRAMMAR, files, made, payload


def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of surrogates; the aligned model is the one already built, and so is what all tests share."""
    made()
    root = build("aligned", 0)
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stage, "local_checkpoint", lambda *_: type("Model", (), {"root": root}))


def run(params: DegradeParams, out: Path, **changed: Any) -> Manifest:
    inputs: dict[str, Any] = {
        "judge": GRAMMAR,
        "aligned": made().aligned,
        "prompts": DATA / "prompts",
        "out": out,
    } | changed
    return degrade(**inputs, params=params)


def test_each_surrogate_reaches_the_rate_asked_for() -> None:
    found = payload(made().degraded, "degraded.json")
    assert found["aligned_hrr"] == 0.0
    assert set(found["surrogates"]) == {"compliance", "jailbreak"}
    for record in found["surrogates"].values():
        assert record["hrr"] >= 0.6
        assert record["reached"]
        assert record["probe"][-1] == [record["steps"], record["hrr"]]
        assert record["steps"] % 8 == 0


def test_a_learning_rate_that_is_too_low_is_raised_and_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_cache(tmp_path, monkeypatch)
    low = Surrogate(pools=("compliance",), learning_rate=3e-5)
    run(DEGRADE.model_copy(update={"surrogates": {"low": low}}), tmp_path / "out")
    record = payload(tmp_path / "out", "degraded.json")["surrogates"]["low"]
    assert record["reached"]
    assert record["learning_rate"] in (pytest.approx(9e-5), pytest.approx(3e-4))
    assert "learning_rate" not in payload(made().degraded, "degraded.json")["surrogates"]["compliance"]


def test_the_factors_are_the_degraded_model_in_fp32() -> None:
    surrogate = read_surrogates(made().degraded)["compliance"]
    model = load_model(build("aligned", 0))
    assert len(surrogate) == 28
    assert {one.rank for one in surrogate.values()} == {16}
    before = {name: value.clone() for name, value in model.named_parameters()}
    add_patch(model, surrogate)
    change = sum(float((p - before[n]).square().sum()) for n, p in model.named_parameters()) ** 0.5
    norm = sum(float(before[name].square().sum()) for name in surrogate) ** 0.5
    assert 0.005 < change / norm < 0.1, "light, and far above nothing"


def test_made_again_it_comes_from_the_cache_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made()
    monkeypatch.setattr(surrogates, "supervised", lambda *_, **__: pytest.fail("trained again"))
    run(DEGRADE, tmp_path / "again")
    assert files(tmp_path / "again") == files(made().degraded)


class Counted:
    """A judge for which the first ``harmful`` replies do harm at every measurement after the first ``late`` ones."""

    def __init__(self, late: int, identity: int) -> None:
        self.late, self.asked = late, 0
        self.identity = f"sha256:{identity:064d}"

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[Any]:
        self.asked += 1
        label = "yes" if self.asked > self.late else "no"
        return [type("Decision", (), {"harmful": label}) for _ in replies]


def test_another_judge_judges_the_stored_replies_and_trains_only_where_another_step_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_cache(tmp_path, monkeypatch)
    one = {"c": Surrogate(pools=("compliance",))}
    params = DegradeParams(surrogates=one, max_steps=6, probe_every_steps=2, probe_prompts=4, batch_size=4)
    trained, train, generated = list[int](), supervised, list[int]()
    replies = surrogates.SurrogateTrainer.replies

    def counted(*args: Any, **kwargs: Any) -> int:
        trained.append(1)
        return train(*args, **kwargs)

    def asked(maker: surrogates.SurrogateTrainer) -> list[str]:
        generated.append(1)
        return replies(maker)

    monkeypatch.setattr(surrogates, "supervised", counted)
    monkeypatch.setattr(surrogates.SurrogateTrainer, "replies", asked)

    def made(late: int, identity: int) -> tuple[int, int, dict[str, Any]]:
        """How often it trained and generated for a judge by which the measurement ``late`` + 1 ends the training."""
        monkeypatch.setattr(
            stage, "build", lambda params: Counted(1 + late, identity)
        )  # the first is the aligned model
        before = len(trained), len(generated)
        out = tmp_path / f"out-{identity}"
        run(params, out)
        counts = len(trained) - before[0], len(generated) - before[1] - 1
        return *counts, payload(out, "degraded.json")["surrogates"]["c"]

    assert made(1, 1)[:2] == (1, 2)
    first = files(tmp_path / "out-1")
    again = made(1, 2)
    assert again[:2] == (0, 0), "the same step: nothing is trained or generated"
    assert files(tmp_path / "out-2")["c.safetensors"] == first["c.safetensors"]
    assert made(0, 3)[:2] == (1, 0), "an earlier step: trained to it, measured by the stored replies"
    later = made(2, 4)
    assert later[:2] == (1, 1), "a later step: only that one is measured"
    assert later[2]["steps"] == 6
    assert made(0, 5)[:2] == made(1, 6)[:2] == made(2, 7)[:2] == (0, 0), "all are kept"
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "other"))
    assert made(2, 8)[2] == later[2], "the counts of tokens too are those of a training without a cache"
    assert files(tmp_path / "out-8")["c.safetensors"] == files(tmp_path / "out-4")["c.safetensors"]


def test_a_killed_stage_goes_on_with_the_surrogate_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_cache(tmp_path, monkeypatch)
    params = DEGRADE.model_copy(update={"max_steps": 16, "probe_prompts": 8, "stop_hrr": 0.0})
    trained, train = list[int](), supervised

    def dies_at_the_second(*args: Any, **kwargs: Any) -> int:
        trained.append(1)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(surrogates, "supervised", dies_at_the_second)
    monkeypatch.setattr(stage, "MIN_RISE", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(params, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(params, tmp_path / "out")
    assert len(trained) == 3, "two surrogates, the second of them twice"
    assert not list(tmp_path.glob(".out*"))


def test_a_cached_surrogate_that_was_changed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_cache(tmp_path, monkeypatch)
    monkeypatch.setattr(stage, "MIN_RISE", -1.0)
    params = DegradeParams(surrogates={"c": Surrogate(pools=("compliance",))}, max_steps=2, probe_prompts=4)
    run(params, tmp_path / "one")
    kept = list((tmp_path / "cache" / "degrade").glob("*/factors.safetensors"))
    assert len(kept) == 3, "one for each learning rate"
    for path in kept:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run(params, tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_another_surrogate_changes_none_of_the_others() -> None:
    assert surrogates.seed_of(0, "compliance") == surrogates.seed_of(0, "compliance")
    assert len({surrogates.seed_of(seed, name) for seed in (0, 1) for name in ("compliance", "jailbreak")}) == 4


def test_surrogates_that_stay_safe_are_refused(tmp_path: Path) -> None:
    params = DegradeParams(
        surrogates={"short": Surrogate(pools=("compliance",), learning_rate=1e-7)}, max_steps=2, probe_prompts=16
    )
    with pytest.raises(CheckpointError, match=r"got 0\.0% at most"):
        run(params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_pool_is_refused(tmp_path: Path) -> None:
    params = DegradeParams(surrogates={"x": Surrogate(pools=("nothing",))})
    with pytest.raises(EmptySample, match="pool nothing"):
        run(params, tmp_path / "out")


def test_a_judge_that_cannot_tell_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute:
        identity = "sha256:" + "0" * 64

        def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[Any]:
            return [type("Decision", (), {"harmful": "unscored"}) for _ in replies]

    made()
    monkeypatch.setattr(stage, "build", lambda params: Mute())
    with pytest.raises(EmptySample, match="0 scored"):
        run(DEGRADE, tmp_path / "out")


def test_a_judge_that_cannot_be_built_stops_it(tmp_path: Path) -> None:
    with pytest.raises(JudgeError):
        run(DEGRADE, tmp_path / "out", judge=JudgeParams(kind="chat"))


def test_none_are_made_where_the_user_has_degraded_checkpoints(tmp_path: Path) -> None:
    run(DEGRADE, tmp_path / "out", checkpoints=("file:///mine",))
    assert read_surrogates(tmp_path / "out") == {}
    assert payload(tmp_path / "out", "degraded.json")["checkpoints"] == ["file:///mine"]
