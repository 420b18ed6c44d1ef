"""Renders chat templates in a process of its own, with bounds on time and memory; run as a script, without safegene.

Each line of stdin is a request: ``template``, ``variables``, ``conversations``, ``seconds`` of CPU time, and ``own``
where the template is not the family's. Each line of stdout is the answer: ``texts``, or ``error``. The environment is
transformers' own, as `safegene.models.templates` checks. A template cannot set limits, open files or import, since it
is sandboxed.

A template that is not the family's must not depend on chance or on the clock: the date may be written out, but nothing
may be decided by it.
"""

import json
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

BYTES = 768 << 20  # of address space
LONGEST = 1 << 20  # characters of a text beyond its prompt
CLOCK = "strftime_now"


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant says; it writes its body."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - the local date, as transformers writes it


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def new_environment() -> Environment:
    """Jinja's sandbox with the functions that chat templates use."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise,
        CLOCK: _strftime_now,
        "dict": dict,
        "namespace": Namespace,
    }
    return environment


def undecided(tree: nodes.Template) -> str:
    """What of a template could depend on chance or on the clock; empty where nothing does."""
    if any(found.name == "random" for found in tree.find_all(nodes.Filter)):
        return "the filter random"
    parents = {child: node for node in _walk(tree) for child in node.iter_child_nodes()}
    if any(found.name == "lipsum" for found in tree.find_all(nodes.Name)):
        return "the function lipsum"
    dated = {CLOCK}
    while True:
        more = set(dated)
        for name in tree.find_all(nodes.Name):
            if name.name in dated and name.ctx == "load":
                target = _written(name, parents)
                if target is None:
                    return f"what is decided by {CLOCK}"
                more |= {target} - {""}
        for found in tree.find_all(nodes.NSRef):
            if found.attr in dated:
                return f"{CLOCK} in a namespace"
        if more == dated:
            return ""
        dated = more


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def _written(name: nodes.Name, parents: Mapping[nodes.Node, nodes.Node]) -> str | None:
    """Where a dated value goes: "" to the text, else the name that it is assigned to; None where it may decide."""
    node: nodes.Node = name
    parent = parents[node]
    if isinstance(parent, nodes.Test) and parent.name == "defined":
        return ""
    if name.name == CLOCK:
        if not isinstance(parent, nodes.Call) or not all(isinstance(arg, nodes.Const) for arg in parent.args):
            return None
        node, parent = parent, parents[parent]
    while isinstance(parent, (nodes.Add, nodes.Concat)):
        node, parent = parent, parents[parent]
    if isinstance(parent, nodes.Output):
        return ""
    if isinstance(parent, nodes.Assign) and isinstance(parent.target, nodes.Name):
        return parent.target.name
    return None


@lru_cache(maxsize=8)
def _compiled(template: str, own: bool) -> Template | str:
    """The template, or what of a template that is not the family's could depend on chance or on the clock."""
    environment = new_environment()
    reason = undecided(environment.parse(template)) if own else ""
    return reason or environment.from_string(template)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of the conversations, or the error."""
    try:
        template = _compiled(request["template"], bool(request["own"]))
        if isinstance(template, str):
            return {"error": f"{template}, in the chat template"}
        texts = []
        for conversation in request["conversations"]:
            text = template.render(
                messages=conversation, tools=None, documents=None, add_generation_prompt=True, **request["variables"]
            )
            if len(text) > LONGEST + sum(len(turn["content"]) for turn in conversation):
                return {"error": f"a text of {len(text)} characters"}
            texts.append(text)
    except MemoryError:
        return {"error": f"more than {BYTES >> 20} MiB of memory"}
    except Exception as error:  # a template raises whatever Python raises
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    return {"texts": texts}


def main() -> None:
    """Answer requests until stdin ends."""
    with suppress(ValueError, OSError):  # not every system bounds the address space
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin:
        used, request = resource.getrusage(resource.RUSAGE_SELF), json.loads(line)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + request["seconds"], most))
        sys.stdout.write(json.dumps(answer(request)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
