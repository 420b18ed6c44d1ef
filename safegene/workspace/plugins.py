"""Plug-ins: objects that safegene looks up by name, its own and those of installed packages, as entry points.

| entry-point group | name | object |
|---|---|---|
| ``safegene.judges`` | ``evaluate.judge.kind`` | ``build(params: JudgeParams) -> Judge`` |
| ``safegene.sources`` | scheme of a source URI | `safegene.checkpoints.sources.uri.Scheme` |
| ``safegene.suite_formats`` | ``safegene suite add --format`` | `safegene.datasets.suites.formats.SuiteFormat` |
| ``safegene.baselines`` | ``calibrate.baseline.method`` | `safegene.repair.baselines.base.Method` |

A package adds a judge by ``[project.entry-points."safegene.judges"]`` in its pyproject.toml. An entry point is imported
when its name is looked up. A name that is taken cannot be replaced.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

from safegene.errors import ParamsError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A mapping of names to objects: those given, then those of installed packages.

    Usage: ``JUDGES = Registry("safegene.judges", {"phrases": build_phrases}); JUDGES["phrases"]``.
    """

    def __init__(self, group: str, built_in: Mapping[str, T] | None = None) -> None:
        self.group = group
        self._built_in = dict(built_in or {})

    def __getitem__(self, name: str) -> T:
        """The object with that name.

        Raises:
            KeyError: there is none.
            ParamsError: two packages define it, or its package cannot be imported.
        """
        if name in self._built_in:
            return self._built_in[name]
        entry = self._entries[name]
        try:
            return cast(T, entry.load())
        except (ImportError, AttributeError) as error:
            package = entry.dist.name if entry.dist else "an installed package"
            raise ParamsError(
                f"expected {entry.value} of {package} for {name!r} in {self.group}, got {error}",
                remedy=f"install another version of {package}, or remove it",
            ) from error

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from sorted(self._entries)

    def __len__(self) -> int:
        return len(self._built_in) + len(self._entries)

    def __contains__(self, name: Any) -> bool:
        return name in self._built_in or name in self._entries

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        entries: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            if entries.get(entry.name, entry).value != entry.value or entry.name in self._built_in:
                package = entry.dist.name if entry.dist else "an installed package"
                raise ParamsError(
                    f"expected each name in {self.group} once, got {entry.name!r} again from {package}",
                    remedy=f"remove {package}, or choose another name in its pyproject.toml",
                )
            entries[entry.name] = entry
        return entries


JUDGES: Registry[Any] = Registry("safegene.judges")
SOURCES: Registry[Any] = Registry("safegene.sources")
BASELINES: Registry[Any] = Registry("safegene.baselines")
