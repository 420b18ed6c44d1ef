"""One thing that is wrong, or should be known, before a run; and what the checks are given."""

from dataclasses import dataclass
from functools import cached_property

from safegene.errors import SafegeneError
from safegene.text import redact_text
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Params, Target


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: the check's name.
        message: what was expected, what was found, and where.
        remedy: what mends it: a command where there is one.
        stops: whether a run would fail, or measure nothing, so that none begins.
        kind: the error that a run raises where this is its only problem.
    """

    check: str
    message: str
    remedy: str
    stops: bool = True
    kind: type[SafegeneError] = SafegeneError

    @classmethod
    def of(cls, check: str, error: SafegeneError, *, stops: bool = True) -> "Finding":
        """The finding of an error; where the error names no remedy, the remedy is to correct what it names."""
        return cls(check, error.message, error.remedy or "correct what the message names", stops, type(error))

    def to_json(self) -> dict[str, str | bool]:
        """The finding as JSON values."""
        return {
            "check": self.check,
            "message": redact_text(self.message),
            "remedy": redact_text(self.remedy),
            "stops": self.stops,
        }


@dataclass(frozen=True)
class Examined:
    """What the checks look at.

    Attributes:
        workspace: the workspace.
        params: its parameters.
        names: the targets that would run.
        targets: every target by name.
        signs: whether the run promotes.
    """

    workspace: Workspace
    params: Params
    names: tuple[str, ...]
    targets: dict[str, Target]
    signs: bool = True

    @cached_property
    def chosen(self) -> dict[str, Target]:
        """The targets that would run, by name."""
        return {name: self.targets[name] for name in self.names if name in self.targets}
