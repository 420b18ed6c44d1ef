"""Commands, targets and code of the README and the documentation exist, and the tutorial's chain runs."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.main import get_command

from safegene.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"`((?:safegene|flows|tests|docs|studies|benchmarks|examples|scripts)/[\w./-]*)`")
PROSE = re.compile(r"`(safegene [^`\n]*)`")
MARKED = re.compile(r"<!-- run -->\s*```console\n(.*?)```", re.S)


def problems_of(words: list[str], *, whole: bool) -> list[str]:
    """What is wrong with one ``safegene`` command; ``whole`` where its arguments must fit too."""
    command: Any = get_command(app)
    rest = list(words[1:])
    while rest and hasattr(command, "commands"):
        if rest[0].startswith("-"):
            break
        if rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        elif (run := command.commands.get("run")) is not None and run.hidden:
            command = run
        else:
            return [f"no command {rest[0]!r}"]
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    wrong = [word for word in rest if word.startswith("--") and word.split("=")[0] not in known | {"--help"}]
    if wrong or hasattr(command, "commands") or not whole:
        return [f"no option {word!r}" for word in wrong]
    try:
        command.make_context(words[0], list(rest), resilient_parsing=False)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def test_the_check_finds_what_is_wrong() -> None:
    assert problems_of(["safegene", "frobnicate"], whole=True)
    assert problems_of(["safegene", "status", "--frobnicate"], whole=False)
    assert problems_of(["safegene", "target", "add", "NAME"], whole=True)  # its source and task are missing
    assert not problems_of(["safegene", "target", "add", "NAME", "file:///x", "--task", "x"], whole=True)
    assert not problems_of(["safegene", "gate", "NAME"], whole=True)


def test_every_safegene_command_in_prose_exists(pages: list[Path]) -> None:
    wrong, seen = list[str](), 0
    for page in pages:
        if page.name == "CHANGELOG.md":
            continue  # it tells of the past
        for text in PROSE.findall(page.read_text(encoding="utf-8")):
            words = text.replace("|", " ").split()
            if words[1].isupper() or words[1] == "...":  # a placeholder
                continue
            if "|" in text:
                words = words[:3]
            seen += 1
            wrong += [f"{page.name}: {text}: {problem}" for problem in problems_of(words, whole=False)]
    assert not wrong
    assert seen > 30


def test_every_place_of_the_repository_exists(pages: list[Path]) -> None:
    named = {(page.name, place) for page in pages for place in PLACE.findall(page.read_text(encoding="utf-8"))}
    named = {(page, place) for page, place in named if page != "CHANGELOG.md" and "template" not in place}
    assert len(named) > 30
    assert not {(page, place) for page, place in named if not (ROOT / place).exists()}


def test_the_readme_lists_every_room(pages: list[Path]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = [path.name for path in (ROOT / "safegene").iterdir() if (path / "__init__.py").is_file()]
    assert len(rooms) > 10
    assert not [room for room in rooms if f"| `safegene/{room}/`" not in text]


def test_every_key_of_a_yaml_block_is_a_parameter(blocks: list[Any]) -> None:
    from safegene.workspace.params import Params

    sections = {field.alias or name: field.annotation for name, field in Params.model_fields.items()}
    wrong, seen = list[str](), 0
    for block in blocks:
        if block.language != "yaml":
            continue
        for section, keys in yaml.safe_load(block.text).items():
            model = sections.get(section)
            if model is None:
                wrong.append(f"{block.where}: {section}")
                continue
            seen += len(keys)
            wrong += [f"{block.where}: {section}.{key}" for key in keys if key not in model.model_fields]
    assert not wrong
    assert seen > 8


def test_every_environment_variable_of_the_code_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    code = [path for folder in ("safegene", "flows") for path in (ROOT / folder).rglob("*.py")]
    named = {name for path in code for name in re.findall(r"SAFEGENE_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8"))}
    assert len(named) > 5
    assert not [name for name in named if f"`{name}`" not in page]


def test_every_make_target_exists(pages: list[Path], blocks: list[Any]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {(page.name, name) for page in pages for name in re.findall(r"`make ([a-z-]+)", page.read_text("utf-8"))}
    for block in blocks:
        lines = block.commands if block.language == "console" else block.text.splitlines()
        named |= {(block.where, name) for line in lines for name in re.findall(r"^make ([a-z-]+)", line)}
    assert len(named) > 5
    assert not {(page, name) for page, name in named if name not in targets}


def test_every_python_block_compiles_and_its_imports_work(blocks: list[Any]) -> None:
    python = [block for block in blocks if block.language == "python"]
    assert python
    for block in python:
        tree = ast.parse(block.text, filename=block.where)
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, block.where, "exec"), {})


def test_the_plug_in_page_defines_what_its_entry_points_name(blocks: list[Any]) -> None:
    from safegene.datasets.suites.loading import LoadOptions
    from safegene.evaluation.judges.canaries import check_canaries
    from safegene.workspace.params import JudgeParams

    names = dict[str, Any]()
    for block in blocks:
        if block.page.name == "plug-in.md" and block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
    judge = names["build"](JudgeParams(kind="grammar"))
    assert judge.identity.startswith("sha256:")
    assert check_canaries(judge)  # the page says that it fails them
    assert judge.judge(["a"], [""])[0].harmful == "unscored"
    assert len(list(names["LINES"].load(b"one\ntwo\n", "prompts.txt", LoadOptions()))) == 2
    assert names["METHOD"].params(gamma=0.5).method == "add"
    place = names["SCHEME"].parse("mount://a", "a")
    assert place is not None
    assert names["SCHEME"].open(place).root == Path("/mnt/models/a")


def test_every_list_of_phrases_of_a_page_is_a_judge_that_passes_its_canaries(blocks: list[Any]) -> None:
    from safegene.evaluation.judges import build
    from safegene.evaluation.judges.canaries import check_canaries
    from safegene.workspace.params import JudgeParams

    yamls = [yaml.safe_load(block.text) for block in blocks if block.language == "yaml"]
    judges = [one["evaluate"]["judge"] for one in yamls if "judge" in one.get("evaluate", {})]
    phrases = [JudgeParams.model_validate(judge) for judge in judges if judge.get("phrases")]
    assert len(phrases) == 2
    assert not [found for judge in phrases for found in check_canaries(build(judge))]


def test_the_reference_lists_every_command_and_option(reference: ModuleType) -> None:
    text = reference.commands()
    for name, command in reference.walk(get_command(app)):
        part = text.split(f"## `{name}`\n")[1].split("\n## ")[0]
        for parameter in command.params:
            shown = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
            assert parameter.name == "help" or all(f"`{flag}`" in part for flag in shown), (name, parameter.name)


def test_the_reference_lists_every_parameter(reference: ModuleType) -> None:
    from safegene.workspace.params import Params

    text = reference.parameters()
    for name, section in Params.model_fields.items():
        part = text.split(f"## `{section.alias or name}`\n")[1].split("\n## ")[0]
        assert section.annotation is not None
        for key, field in section.annotation.model_fields.items():
            row = next(line for line in part.splitlines() if line.startswith(f"| `{key}` |"))
            assert field.is_required() == row.endswith("| required |")
    assert "<class" not in text
    assert "typing." not in text


def test_the_reference_lists_every_public_name_once(reference: ModuleType) -> None:
    import safegene

    names = re.findall(r"^::: safegene\.(\w+)$", reference.api(), re.M)
    assert sorted([*names, "__version__"]) == sorted(safegene.__all__)
    assert names.index("evaluate") < names.index("decide") < names.index("promote")


def test_the_readme_names_every_step_of_the_api(pages: list[Path]) -> None:
    import inspect

    import safegene

    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## From Python")[1].split("\n## ")[0]
    steps = {name for name in safegene.__all__ if inspect.isfunction(getattr(safegene, name))} - {"read_manifest"}
    assert not [name for name in steps if f"`{name}`" not in text]


def test_the_reference_lists_every_error(reference: ModuleType) -> None:
    from safegene import errors

    text = reference.errors()
    for name, item in vars(errors).items():
        if isinstance(item, type) and issubclass(item, errors.SafegeneError):
            assert f"`{name}` | {item.exit_code} |" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorial" / "own-family.md").read_text(encoding="utf-8")
    (block,) = MARKED.findall(page)
    lines = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) >= 8
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -e\n" + "\n".join(lines)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert (tmp_path / "group-adapter" / "adapter_model.safetensors").is_file()
    assert "verified" in done.stdout
