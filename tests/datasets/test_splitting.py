"""`data split`: disjoint sets from suites, the same ones each time, and no file of a person's written over."""

import json
from collections import Counter
from pathlib import Path

import pytest

from safegene.datasets.contamination import seen_in_fitting
from safegene.datasets.division import SplitOptions, split_prompts, split_task
from safegene.datasets.made_sets import SHIPPED, read_made
from safegene.datasets.mining_pool import require_pool
from safegene.datasets.own_format import OwnSet, add_own, parse_columns
from safegene.datasets.pool_templates import POOL_MAKERS, WRAPPERS, plain_rows, pool_rows, shipped_wrappers
from safegene.datasets.prompts import Kind, Prompt, Split, read_prompts
from safegene.datasets.set_rules import POOLS
from safegene.datasets.splitting import split_suites
from safegene.datasets.suite_library import check_suites, use_suites
from safegene.errors import ContaminatedSample, EmptySample, FormatError, ParamsError
from safegene.workspace.digest import digest_file
from safegene.workspace.layout import Workspace
from safegene.workspace.params import ValidateParams
from tests.datasets.test_own_format import MAP
from tests.factories.library import workspace
from tests.factories.own_data import THINGS, VERBS, write_prompts, write_task

ROOT = Path(__file__).parents[2]
TASK = parse_columns(["prompt=question", "response=answer"], ["task"], "")
PARAMS, POOL_NAMES = ValidateParams(), ("compliance", "jailbreak", "identity", "blunt")
OPTIONS = SplitOptions()


def rows_of(kind: Kind, count: int, form: str = "how does one {v} {t} ?") -> list[Prompt]:
    texts = [(v, form.format(v=v, t=t)) for t in THINGS for v in VERBS][:count]
    return [
        Prompt(id=f"{kind}-{at}", prompt=text, kind=kind, category=verb, behaviour=f"{kind}-{at}", split="test")
        for at, (verb, text) in enumerate(texts)
    ]


ROWS = [*rows_of("harmful", 100), *rows_of("lookalike", 100, "why would one {v} {t} ?")]


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    ws = workspace(tmp_path)
    add_own(ws, OwnSet(str(write_prompts(ws.root / "ours.csv")), MAP))
    return ws


def test_behaviours_go_to_one_place_and_every_place_gets_what_it_needs() -> None:
    division = split_prompts(ROWS, POOL_NAMES, OPTIONS, PARAMS)
    behaviours = {
        (name, row.split): {other.behaviour for other in rows if other.split == row.split and other.behaviour}
        for name, rows in division.sets.items()
        for row in rows
    }
    behaviours["pool", "fit"] -= behaviours["safety", "fit"]  # these it asks in other words
    places = list(behaviours.values())
    assert all(not one & other for at, one in enumerate(places) for other in places[at + 1 :])
    counts = {
        name: Counter((row.kind, row.split) for row in rows if row.category != "plain")
        for name, rows in division.sets.items()
    }
    assert counts["safety"]["harmful", "fit"] == counts["safety"]["wrapped", "fit"] == 32
    assert counts["safety"]["harmful", "validation"] == 4
    assert counts["safety"]["lookalike", "fit"] == 32 + 8, "every fourth is asked inside a wrapper too"
    assert counts["gate"] == {("harmful", "test"): 52, ("wrapped", "test"): 52, ("lookalike", "test"): 56}
    assert division.left_out == {}
    assert {row.category for row in division.sets["gate"]} == set(VERBS), "each category is asked"


def test_the_pool_has_two_parts_that_mining_can_use_and_that_validate_accepts() -> None:
    pool = split_prompts(ROWS, POOL_NAMES, OPTIONS, PARAMS).sets["pool"]
    counts = Counter((row.split, row.kind) for row in pool)
    assert len(counts) == 6, "harmful, wrapped and look-alike in each"
    assert min(counts.values()) >= 8
    assert sum(row.split == "validation" for row in pool) >= PARAMS.min_rows
    mined, held = ([row for row in pool if row.split == split] for split in ("fit", "validation"))
    assert not {row.behaviour for row in mined} & {row.behaviour for row in held}
    texts = [template.removesuffix("{prompt}") for template in WRAPPERS["held"]]
    assert not any(text in row.prompt for text in texts for row in mined), "wrappers of its own"
    assert not any(text.removesuffix("{prompt}") in row.prompt for text in WRAPPERS["fit"] for row in held)


@pytest.mark.parametrize("kept", ["gate", "safety"])
def test_the_pool_gives_way_to_a_kept_gate_and_to_a_kept_validation_split(kept: str) -> None:
    pool = split_prompts(ROWS, POOL_NAMES, OPTIONS, PARAMS).sets["pool"]
    row = next(row for row in pool if row.split == "fit")
    split: Split = "test" if kept == "gate" else "validation"
    mine = [row.model_copy(update={"id": "mine", "split": split})]
    division = split_prompts(ROWS, POOL_NAMES, OPTIONS, PARAMS, other_tested=mine)
    assert row.behaviour not in {other.behaviour for other in division.sets["pool"]}
    assert not seen_in_fitting(mine, division.sets["pool"], ngram=8, max_overlap=0.5)
    assert division.pool_left_out > 0


def test_a_pool_that_would_be_too_small_is_refused() -> None:
    pool = split_prompts(ROWS, POOL_NAMES, OPTIONS, PARAMS).sets["pool"]
    require_pool(pool, 0, PARAMS)
    with pytest.raises(
        EmptySample, match=r"pool of at least 32 prompts of split validation.*got 0 \(7 left out"
    ) as caught:
        require_pool([row for row in pool if row.split == "fit"], 7, PARAMS)
    assert "--keep pool" in caught.value.remedy
    with pytest.raises(EmptySample, match="harmful ones and look-alikes"):
        require_pool([row for row in pool if row.kind != "harmful"], 0, PARAMS)


def test_the_same_rows_and_seed_give_the_same_sets_in_any_order_of_rows() -> None:
    one, two = (split_prompts(rows, POOL_NAMES, OPTIONS, PARAMS) for rows in (ROWS, ROWS[::-1]))
    assert {name: set(rows) for name, rows in one.sets.items()} == {name: set(rows) for name, rows in two.sets.items()}
    other = split_prompts(ROWS, POOL_NAMES, SplitOptions(seed=1), PARAMS)
    assert set(other.sets["gate"]) != set(one.sets["gate"])


def test_a_text_of_two_behaviours_joins_them() -> None:
    again = [row.model_copy(update={"id": f"again-{row.id}", "behaviour": f"again-{row.id}"}) for row in ROWS]
    shouted = [row.model_copy(update={"prompt": row.prompt.upper() + " !"}) for row in again]
    division = split_prompts([*ROWS, *shouted], POOL_NAMES, OPTIONS, PARAMS)
    assert sum(row.kind == "harmful" for row in division.sets["gate"]) == 52, "each text is asked once"


def test_a_text_that_is_harmful_and_safe_is_refused() -> None:
    safe = ROWS[0].model_copy(update={"id": "safe", "behaviour": "safe", "kind": "lookalike"})
    with pytest.raises(FormatError, match="one kind for a text, got harmful in 'harmful-0' and lookalike in 'safe'"):
        split_prompts([*ROWS, safe], POOL_NAMES, OPTIONS, PARAMS)


def test_wrapped_rows_of_a_set_go_to_the_gate_only() -> None:
    own = [
        row.model_copy(update={"id": f"{row.id}-w", "kind": "wrapped", "prompt": f"in the king's voice: {row.prompt}"})
        for row in ROWS[:100]
    ]
    division = split_prompts([*ROWS, *own], POOL_NAMES, OPTIONS, PARAMS)
    assert sum("king's voice" in row.prompt for row in division.sets["gate"]) == 52
    assert sum(row.kind == "wrapped" for row in division.sets["gate"]) == 52, "no shipped wrapper on top of them"
    assert not any(
        "king's voice" in row.prompt for name in ("safety", "degrade", "pool") for row in division.sets[name]
    )


def test_gate_prompts_in_the_words_of_fitted_ones_are_left_out_and_counted() -> None:
    long = "please say in a calm and friendly way and in great detail how one could really {v} {t} ?"
    rows = [*rows_of("harmful", 100, long), *ROWS[100:]]
    with pytest.raises(
        EmptySample, match=r"at least 32 gate prompts.*behaviours left out: more than 0.5 of the 8-grams"
    ):
        split_prompts(rows, POOL_NAMES, OPTIONS, PARAMS)
    some = [*rows[:60], *(row.model_copy(update={"id": f"x{row.id}", "behaviour": f"x{row.id}"}) for row in ROWS[:100])]
    division = split_prompts([*some, *ROWS[100:]], POOL_NAMES, OPTIONS, PARAMS)
    (count,) = division.left_out.values()
    assert 0 < count < 60
    fitted = [*division.sets["degrade"], *division.sets["safety"]]
    assert not seen_in_fitting(division.sets["gate"], fitted, ngram=8, max_overlap=0.5)


@pytest.mark.parametrize(
    ("harmful", "safe", "words"),
    [
        (
            75,
            100,
            "at least 76 harmful behaviours (4 for degrade, 32 for fit, 4 for validation, 4 for pool, 32 for gate)",
        ),
        (100, 71, "at least 72 lookalike behaviours (32 for fit, 4 for validation, 4 for pool, 32 for gate), got 71"),
        (0, 100, "at least 76 harmful behaviours"),
    ],
)
def test_too_few_says_how_many_of_which_kind(harmful: int, safe: int, words: str) -> None:
    rows = [*ROWS[:harmful], *ROWS[100 : 100 + safe]]
    with pytest.raises(EmptySample) as caught:
        split_prompts(rows, POOL_NAMES, OPTIONS, PARAMS)
    assert words in str(caught.value)
    assert split_prompts([*ROWS[:76], *ROWS[100:172]], POOL_NAMES, OPTIONS, PARAMS).sets["gate"]


@pytest.mark.parametrize(
    "options",
    [SplitOptions(fit=1.0), SplitOptions(degrade=-0.1), SplitOptions(fit=0.6, validation=0.5), SplitOptions(pool=0.8)],
    ids=str,
)
def test_shares_that_leave_no_gate_are_refused(options: SplitOptions) -> None:
    with pytest.raises(ParamsError, match="leaves room for the gate"):
        split_prompts(ROWS, POOL_NAMES, options, PARAMS)


def test_an_unknown_pool_is_named() -> None:
    with pytest.raises(ParamsError, match=r"pools with templates .*, got mine, zoo") as caught:
        split_prompts(ROWS, ("compliance", "zoo", "mine"), OPTIONS, PARAMS)
    assert "--keep degrade" in caught.value.remedy


def test_a_tasks_answers_are_spread_over_its_splits() -> None:
    rows = [
        Prompt(
            id=f"t{at}", prompt=f"number {at}", kind="task", category="t", behaviour="", split="test", response=label
        )
        for at in range(150)
        for label in ("abc"[at % 3],)
    ]
    made = split_task(rows, OPTIONS, PARAMS)
    assert Counter(row.split for row in made) == {"fit": 32, "validation": 6, "test": 112}
    for split in ("fit", "validation", "test"):
        counts = Counter(row.response for row in made if row.split == split)
        assert max(counts.values()) - min(counts.values()) <= 2
    with pytest.raises(
        EmptySample, match=r"at least 68 rows of the task \(32 for fit, 4 for validation, 32 for gate\)"
    ):
        split_task(rows[:67], OPTIONS, PARAMS)


def test_every_pool_has_templates_and_no_row_of_two_pools_or_splits_is_the_same() -> None:
    assert set(POOL_MAKERS) == set(POOLS)
    texts = [template for split in WRAPPERS for template in WRAPPERS[split]]
    assert len(texts) == len(set(texts))
    assert all(len(shipped_wrappers(split)) == len(WRAPPERS[split]) for split in WRAPPERS)
    rows = [row for pool in POOL_MAKERS for row in pool_rows(pool, ROWS[:8])]
    assert len({row.id for row in rows}) == len(rows)
    plain = [row.prompt for row in rows if row.kind == "generic"] + [
        row.prompt for split in ("fit", "validation") for row in plain_rows(split)
    ]
    assert len(set(plain)) == len(plain)
    assert all(len([row for row in rows if row.pool == pool]) >= 24 for pool in POOL_MAKERS)
    assert not any(row.kind in ("harmful", "wrapped") for row in pool_rows("benign", ROWS[:8]))


def test_the_sets_that_ship_are_known() -> None:
    data = ROOT / "data"
    there = {path.relative_to(data).as_posix(): digest_file(path) for path in data.glob("*/*.jsonl")}
    assert there == SHIPPED


def test_suites_become_the_workspaces_sets_and_a_second_time_the_same(ws: Workspace) -> None:
    add_own(ws, OwnSet(str(write_task(ws.root / "desk.csv")), TASK))
    made = split_suites(ws, [], OPTIONS)
    names = {f"prompts/{name}.jsonl" for name in ("degrade", "safety", "pool", "gate")} | {"tasks/desk.jsonl"}
    assert set(made.rows) == set(read_made(ws).sets) == names
    before = {name: (ws.data / name).read_bytes() for name in names}
    assert all(read_prompts(ws.data / name).rows == made.rows[name] for name in names)
    split_suites(ws, [], OPTIONS)
    split_suites(ws, ["ours", "desk"], OPTIONS)
    assert {name: (ws.data / name).read_bytes() for name in names} == before
    split_suites(ws, ["desk"], SplitOptions(seed=3))
    assert (ws.prompts / "gate.jsonl").read_bytes() == before["prompts/gate.jsonl"], "a task suite makes its task only"
    assert (ws.tasks / "desk.jsonl").read_bytes() != before["tasks/desk.jsonl"]
    check_suites(ws, [])  # although half of its rows are fitted on
    with pytest.raises(ContaminatedSample):
        use_suites(ws, ["ours"])


@pytest.mark.parametrize("name", ["prompts/gate.jsonl", "prompts/safety.jsonl", "prompts/pool.jsonl"])
def test_a_set_written_by_hand_is_never_written_over_without_being_asked(ws: Workspace, name: str) -> None:
    path = ws.data / name
    split_suites(ws, [], OPTIONS)
    mine = path.read_bytes().replace(b"somebody", b"anybody")
    path.write_bytes(mine)
    others = {other: other.read_bytes() for other in ws.prompts.glob("*.jsonl")}
    with pytest.raises(ParamsError, match=f"expected .*{path.name} absent or as a safegene command wrote it") as caught:
        split_suites(ws, [], SplitOptions(seed=1))
    assert {other: other.read_bytes() for other in ws.prompts.glob("*.jsonl")} == others, "nothing is half written"
    assert "--replace" in caught.value.remedy
    split_suites(ws, [], OPTIONS, replace=True)
    assert path.read_bytes() != mine
    path.write_bytes(mine)
    with pytest.raises(ParamsError, match="by hand"):
        split_suites(ws, [], OPTIONS)


def test_a_kept_set_stays_and_the_others_keep_apart_from_it(ws: Workspace) -> None:
    split_suites(ws, [], OPTIONS)
    path = ws.prompts / "degrade.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()][:40]
    asked = read_prompts(ws.prompts / "gate.jsonl").rows[0]
    rows[0] |= {"prompt": asked.prompt, "behaviour": ""}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = path.read_bytes()
    made = split_suites(ws, [], OPTIONS, keep=["degrade"])
    assert path.read_bytes() == mine
    assert set(made.rows) == {"prompts/safety.jsonl", "prompts/pool.jsonl", "prompts/gate.jsonl"}
    assert made.left_out == {"the same text as fitted prompts": 1}
    assert asked.behaviour not in {row.behaviour for row in made.rows["prompts/gate.jsonl"]}
    with pytest.raises(ContaminatedSample, match="the new sets"):
        split_suites(ws, [], SplitOptions(seed=5), keep=["gate"])
    with pytest.raises(ParamsError, match="expected sets of degrade, safety, pool, gate to keep, got tasks"):
        split_suites(ws, [], OPTIONS, keep=["tasks"])


def test_a_killed_split_can_be_run_again(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    split_suites(ws, [], OPTIONS)
    old = (ws.prompts / "gate.jsonl").read_bytes()
    split_suites(ws, [], SplitOptions(seed=1))
    (ws.prompts / "gate.jsonl").write_bytes(old)  # as if the writer was killed before its last file
    split_suites(ws, [], SplitOptions(seed=1))
    assert (ws.prompts / "gate.jsonl").read_bytes() != old


def test_an_id_in_two_suites_is_refused(ws: Workspace) -> None:
    path = ws.suites / "ours" / "data.jsonl"
    first = json.loads(path.read_text().splitlines()[0])["id"].removeprefix("ours-")
    (ws.root / "o.csv").write_text(f"id,prompt,kind\n{first},another text,harmful\n")
    add_own(ws, OwnSet(str(ws.root / "o.csv"), parse_columns(["id=id"], [], ""), name="theirs"))
    split_suites(ws, [], OPTIONS)  # a suite's ids begin with its name
    copied = ws.suites / "theirs" / "data.jsonl"
    row = json.loads(copied.read_text())
    assert row["id"] == f"theirs-{first}"
