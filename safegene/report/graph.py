"""The lineage of a verdict as a drawn graph: what each artefact was made from, by the digests in the manifests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from safegene.report.lineage import TITLES, data_of, made_from
from safegene.report.pictures import number, svg, text
from safegene.report.state import RecordedArtefact, TargetState
from safegene.report.words import STAGES, short

BOX, TALL, GAP = 128, 60, 30
HEAD, BETWEEN, FOOT = 44, 56, 38
WIDTH = 5 * BOX + 4 * GAP


@dataclass(frozen=True)
class Node:
    """A box of the graph.

    Attributes:
        title: what it is.
        detail: its digest, or why there is none.
        state: "", "gone" (absent) or "broken" (unusable): a class of the style sheet.
        sources: names of the nodes that it was made from.
        data: how many prompt and task sets it was made from.
        step: key of its step in the lineage; "" for its name.
    """

    title: str
    detail: str
    state: str = ""
    sources: tuple[str, ...] = ()
    data: int = 0
    step: str = ""


def lineage_graph(family: Mapping[str, RecordedArtefact], target: TargetState | None = None) -> Markup:
    """The family's artefacts in one row; the target's artefacts, and what is live, in a second one below it.

    Each box is a link to the step of that key in the lineage below it (`safegene.report.lineage.lineage`).
    """
    rows = [_nodes(family, family)]
    if target:
        below = _nodes(target.artefacts, {**family, **target.artefacts})
        if target.live:
            made = ("verdict",) if target.candidate_is_live else ()
            state, step = "broken" * bool(target.live.revoked), "release" if made else "live-release"
            below["release"] = Node("Live release", short(target.live.release), state, made, step=step)
        rows.append(below)
    nodes = {name: node for row in rows for name, node in row.items()}
    places = {name: (column, row) for row, names in enumerate(rows) for column, name in enumerate(names)}
    edges = [(source, name) for name, node in nodes.items() for source in node.sources if source in places]
    body = [edge for pair in edges for edge in _edge(*(places[name] for name in pair))]
    body += [part for name, node in nodes.items() for part in _box(name, node, *places[name])]
    said = "; ".join(node.title.lower() + _made_from(node, nodes) for node in nodes.values())
    height = HEAD + len(rows) * TALL + (BETWEEN + FOOT if len(rows) == 2 else 10)
    return svg(f"Lineage: {said}", WIDTH, height, body, role="group")


def _made_from(node: Node, nodes: Mapping[str, Node]) -> str:
    return f" from {', '.join(nodes[one].title.lower() for one in node.sources)}" if node.sources else ""


def _nodes(artefacts: Mapping[str, RecordedArtefact], known: Mapping[str, RecordedArtefact]) -> dict[str, Node]:
    names = {artefact.digest: name for name, artefact in known.items() if artefact.digest}
    nodes = {}
    for name, artefact in artefacts.items():
        inputs = made_from(name, artefacts).values()
        sources = tuple(dict.fromkeys(names[digest] for digest in inputs if digest in names))
        state = "broken" if artefact.problem else "gone" if artefact.manifest is None else ""
        absent = "unusable" if artefact.problem else f"not run: {STAGES[name]}"
        nodes[name] = Node(TITLES[name], short(artefact.digest) or absent, state, sources, len(data_of(artefact)))
    return nodes


def _corner(column: int, row: int) -> tuple[float, float]:
    return column * (BOX + GAP), HEAD + row * (TALL + BETWEEN)


def _box(name: str, node: Node, column: int, row: int) -> Sequence[Markup]:
    x, y = _corner(column, row)
    rect = '<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="6"/>'
    frame = Markup(rect).format(f"node {node.state}".strip(), number(x + 0.5), number(y + 0.5), BOX - 1, TALL - 1)
    words = [text(x + 10, y + 19, node.title, "rowname"), text(x + 10, y + 36, node.detail, "nodedetail")]
    if node.data:
        words.append(text(x + 10, y + 51, f"+ {node.data} data set{'s' * (node.data > 1)}", "nodedetail"))
    return Markup('<a href="#step-{}">').format(node.step or name), frame, *words, Markup("</a>")


def _edge(source: tuple[int, int], end: tuple[int, int]) -> Iterator[Markup]:
    """An arrow: straight to the next box of a row, bowed over others, and down from the first row to the second."""
    (x, y), (u, v) = _corner(*source), _corner(*end)
    span = abs(end[0] - source[0])
    if source[1] == end[1] and span == 1:
        yield _path(f"M{number(x + BOX)} {number(y + TALL / 2)}H{number(u - 4)}")
        yield _head(u - 1, v + TALL / 2, 5, 4)
    elif source[1] == end[1]:
        upwards = source[1] == 0
        edge, bow = (y, y - 8 - 7 * span) if upwards else (y + TALL, y + TALL + 8 + 7 * span)
        start, stop, tip = x + BOX * 0.6, u + BOX * 0.4, edge - 4 if upwards else edge + 4
        yield _path(f"M{_at(start, edge)}C{_at(start, bow)} {_at(stop, bow)} {_at(stop, tip)}")
        yield _head(stop, edge, 4, 5 if upwards else -5, down=True)
    else:
        start, stop = x + BOX * 0.5, u + BOX * (0.5 + 0.12 * (source[0] - end[0]) / 2)
        middle = (y + TALL + v) / 2
        yield _path(f"M{_at(start, y + TALL)}C{_at(start, middle)} {_at(stop, middle)} {_at(stop, v - 4)}")
        yield _head(stop, v - 1, 4, 5, down=True)


def _at(x: float, y: float) -> str:
    return f"{number(x)} {number(y)}"


def _path(way: str) -> Markup:
    return Markup('<path class="edge" d="{}"/>').format(way)


def _head(x: float, y: float, wide: float, long: float, *, down: bool = False) -> Markup:
    """An arrowhead whose tip is at (x, y); to the right, or along y."""
    points = f"l{_at(-wide, -long)}h{number(2 * wide)}Z" if down else f"l{_at(-wide, -long)}v{number(2 * long)}Z"
    return Markup('<path class="edgehead" d="M{}{}"/>').format(_at(x, y), points)
