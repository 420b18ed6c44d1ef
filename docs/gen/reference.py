"""MkDocs hook: the reference of commands, parameters, errors and plug-ins, read from the code at every build.

A page asks for a part by a comment, ``<!-- generated: commands -->``. What stands from there to ``<!-- end -->`` is for
readers of the file itself, and is replaced in the site: where to find the part, or the part, which a test compares.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

MARK = re.compile(r"<!-- generated: ([a-z]+) -->\n(.*?)\n<!-- end -->", re.S)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the generated parts of a page in place of its comments (called by MkDocs for every page)."""
    return MARK.sub(lambda mark: PARTS[mark.group(1)](), markdown)


def commands() -> str:
    """Every command of ``safegene`` with its arguments and options."""
    from typer.main import get_command

    from safegene.cli.app import app

    return "\n\n".join(_command(name, command) for name, command in walk(get_command(app)))


def walk(group: Any, prefix: str = "safegene") -> Iterator[tuple[str, Any]]:
    """Every visible command below a group: (its full name, the command)."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            if (run := command.commands.get("run")) is not None and run.hidden:
                yield f"{prefix} {name}", run
            yield from walk(command, f"{prefix} {name}")
        elif not command.hidden:
            yield f"{prefix} {name}", command


def _command(name: str, command: Any) -> str:
    lines = [f"## `{name}`", "", _plain(command.help or ""), ""]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and one.name != "help"]
    usage = " ".join([name, *(_usage(one) for one in arguments), *(["[OPTIONS]"] if options else [])])
    lines += ["```text", usage, "```", ""]
    if arguments or options:
        lines += ["| argument or option | meaning | default |", "|---|---|---|"]
        lines += [_row(f"`{one.name.upper()}`", one) for one in arguments]
        lines += [_row(", ".join(f"`{flag}`" for flag in one.opts), one) for one in options]
    return "\n".join(lines)


def _usage(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _row(name: str, parameter: Any) -> str:
    default = parameter.default
    shown = "required" if parameter.required else "" if default in (None, False, "", ()) else f"`{default}`"
    return f"| {name} | {_cell(_plain(parameter.help or ''))} | {shown} |"


def _plain(text: str) -> str:
    """Help text without the console's markup."""
    return re.sub(r"\[/?(?:bold|red|yellow|dim)?\]", "", text).replace("\\[", "[")


def parameters() -> str:
    """Every section of ``params.yaml`` with its keys, types and defaults."""
    from safegene.workspace.params import Params

    sections = ((field.alias or name, field.annotation) for name, field in Params.model_fields.items())
    return "\n\n".join(_model(name, model, set()) for name, model in sections if model is not None)


def _model(name: str, model: type[BaseModel], seen: set[type], level: int = 2) -> str:
    seen.add(model)
    lines = [f"{'#' * level} `{name}`", "", _doc(model), "", "| key | type | default |", "|---|---|---|"]
    nested = list[tuple[str, type[BaseModel]]]()
    for key, one in model.model_fields.items():
        lines.append(f"| `{key}` | {_cell(_type(one))} | {_default(one)} |")
        nested += [pair for part in _models_in(one.annotation) for pair in _choices(f"{name}.{key}", part)]
    text = "\n".join(lines)
    for title, inner_model in nested:
        if inner_model not in seen:
            text += "\n\n" + _model(title, inner_model, seen, 3)
    return text


def _choices(title: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A nested section; every registered baseline where the section is one of those."""
    from safegene.workspace.baseline_params import BaselineParams
    from safegene.workspace.plugins import BASELINES

    if model is not BaselineParams:
        yield title, model
        return
    for name in sorted(BASELINES):
        yield f"{title}, method {name}", BASELINES[name].params


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _type(field: Any) -> str:
    """A field's type in words, with its bounds."""
    return _words(field.annotation) + "".join(f", {text}" for one in field.metadata for text in _bounds(one))


def _words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Annotated:
        bounds = [text for one in parts[1:] for text in _bounds(one)]
        return ", ".join([_words(parts[0]), *bounds])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in parts))
    if origin is tuple:
        return f"list of {_words(parts[0])}"
    if origin is dict:
        return f"{_words(parts[0])} to {_words(parts[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "a section, below"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    return names.get(name := getattr(annotation, "__name__", str(annotation)), name)


def _bounds(constraint: Any) -> Iterator[str]:
    """The bounds that one piece of a field's metadata states."""
    for part in getattr(constraint, "metadata", None) or [constraint]:
        for at, word in BOUNDS.items():
            if (value := getattr(part, at, None)) is not None:
                yield f"{word} {value}"
        if (pattern := getattr(part, "pattern", None)) is not None:
            yield f"pattern `{pattern}`"


BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "length at least"}


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    if isinstance(value, BaseModel):
        return "see below"
    shown = list(value) if isinstance(value, tuple) else value
    return f"`{json.dumps(shown, default=str)}`"


def sets() -> str:
    """What each prompt and task set may hold, and how many rows of what the stages need."""
    from safegene.datasets.set_rules import RULES

    lines = ["| set | kinds | splits | may not be blank | at least | for |", "|---|---|---|---|---|---|"]
    for rules in RULES.values():
        columns = (", ".join(f"`{value}`" for value in values) for values in (rules.kinds, rules.splits, rules.filled))
        head = f"| `{rules.file}` | {' | '.join(columns)} |"
        for part in rules.parts:
            least = "`validate.min_rows`" if part.least is None else str(part.least)
            lines.append(f"{head} {least} {('of ' + part.words) if part.words else 'rows'} | {_cell(part.used)} |")
            head = "| | | | |"
    return "\n".join(lines)


def row() -> str:
    """The fields of a row."""
    from safegene.datasets.set_rules import row_schema

    schema = row_schema()
    lines = ["| field | meaning | values |", "|---|---|---|"]
    for name, field in schema["properties"].items():
        values = ", ".join(f"`{value}`" for value in field.get("enum", [])) or "text"
        optional = "" if name in schema["required"] else '; `""` where it is absent'
        lines.append(f"| `{name}` | {_cell(field['description'])} | {values}{optional} |")
    return "\n".join(lines)


def pools() -> str:
    """The pools that have templates."""
    from safegene.datasets.set_rules import POOLS

    rows = (f"| `{name}` | {_cell(meaning)} |" for name, meaning in POOLS.items())
    return "\n".join(["| pool | rows |", "|---|---|", *rows])


def fields() -> str:
    """The fields of a record."""
    from safegene.ledger.record import FIELDS

    rows = (f"| `{name}` | {_cell(meaning)} |" for name, meaning in FIELDS.items())
    return "\n".join(["| field | content |", "|---|---|", *rows])


def baselines() -> str:
    """Every registered rival method with its paper."""
    from safegene.workspace.plugins import BASELINES

    rows = (f"| `{name}` | <{BASELINES[name].reference_url}> |" for name in sorted(BASELINES))
    return "\n".join(["| `calibrate.baseline.method` | paper |", "|---|---|", *rows])


def errors() -> str:
    """The error classes as a tree, each with its exit code."""
    from safegene import errors as module

    return "\n".join(["| error | exit code | meaning |", "|---|---|---|", *_branch(module.SafegeneError, 0)])


def _branch(error: type[Any], depth: int) -> Iterator[str]:
    indent = "&nbsp;" * 4 * depth
    yield f"| {indent}`{error.__name__}` | {error.exit_code} | {_cell(_doc(error).splitlines()[0])} |"
    for child in error.__subclasses__():
        if child.__module__ == error.__module__:
            yield from _branch(child, depth + 1)


def api() -> str:
    """Every public name in three sections: functions in the pipeline's order, types, errors."""
    import safegene
    from safegene.pipeline.table import PIPELINE

    stages = (stage.name.replace("-", "_") for stage in PIPELINE)
    order = ["init", "add_target", *("decide" if name == "gate" else name for name in stages)]
    public = {name: getattr(safegene, name) for name in safegene.__all__ if name != "__version__"}
    functions = [name for name, item in public.items() if not inspect.isclass(item)]
    functions.sort(key=lambda name: order.index(name) if name in order else len(order))
    failures = [name for name, item in public.items() if _is_error(item)]
    types = [name for name in public if name not in (*functions, *failures)]
    sections = {"Functions": functions, "Types": types, "Errors": failures}
    return "\n\n".join(f"## {title}\n\n" + "\n\n".join(map(_member, names)) for title, names in sections.items())


def _is_error(item: Any) -> bool:
    return inspect.isclass(item) and issubclass(item, Exception)


def _member(name: str) -> str:
    return f"::: safegene.{name}\n    options: {{heading_level: 3}}"


def _doc(item: Any) -> str:
    """A docstring as Markdown: double backquotes become single ones, single ones too."""
    return inspect.cleandoc(item.__doc__ or "").replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "parameters": parameters,
    "sets": sets,
    "row": row,
    "pools": pools,
    "fields": fields,
    "baselines": baselines,
    "errors": errors,
    "api": api,
}
