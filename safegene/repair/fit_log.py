"""The finished parts of a calibration, kept in the cache until it ends, so that a killed one goes on.

A part is the first fit, or one round of mining. Kept are the numbers of the coefficients, exactly, and what the part
found. A note that does not fit the coefficients is not used.
"""

import itertools
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from safegene.errors import FormatError
from safegene.models.tokens import TokenCount
from safegene.repair.coefficients import Coefficients
from safegene.repair.fitting import Fitted, assign, fitted_from
from safegene.workspace.layout import cache_folder
from safegene.workspace.parsing import Strict, parse
from safegene.workspace.resume_log import ResumeLog

log = logging.getLogger(__name__)
VERSION = 3  # raised when the same inputs give other coefficients


class Note(Strict):
    """One finished part.

    Attributes:
        numbers: of every tensor of the coefficients, flat.
        steps: optimiser steps behind them.
        history: (steps done, objective) of the first fit; None where that is not finite.
        scale: part of the fitted change that is kept.
        found: what else the part found, as JSON.
        tokens: that the target had read up to the part's end.
    """

    numbers: list[list[float]]
    steps: int
    history: list[tuple[int, float | None]]
    scale: float
    found: dict[str, Any]
    tokens: dict[str, int]


class FitLog:
    """The finished parts of one calibration."""

    def __init__(self, identity: Mapping[str, Any], read: TokenCount) -> None:
        """The finished parts of an identity.

        Args:
            identity: everything that the coefficients depend on, besides the code and torch.
            read: counts what the target reads; a part that is restored counts as when it was done.
        """
        self._read = read
        own = {**identity, "version": VERSION, "torch": str(torch.__version__)}
        self._notes = ResumeLog(cache_folder() / "calibrate", own)
        self._known = self._notes.read()

    def restore(self, part: str, coefficients: Coefficients) -> tuple[Fitted, dict[str, Any]] | None:
        """Set the coefficients to where ``part`` left them, with what it found; None where it did not finish."""
        if part not in self._known:
            return None
        try:
            note = parse(Note, self._known[part], where=str(self._notes.path))
        except FormatError as error:
            log.warning("%s is done again: %s", part, error)
            return None
        shapes = [tensor.shape for tensor in coefficients.parameters]
        if [len(values) for values in note.numbers] != [shape.numel() for shape in shapes]:
            return None
        values = [torch.tensor(some).reshape(shape) for some, shape in zip(note.numbers, shapes, strict=True)]
        assign(coefficients, values)
        self._read.restart(note.tokens)
        log.info("%s was finished before a kill, and is not done again", part)
        history = [(step, math.nan if objective is None else objective) for step, objective in note.history]
        return fitted_from(coefficients, note.steps, history, note.scale), note.found

    def keep(self, part: str, coefficients: Coefficients, fitted: Fitted, found: Mapping[str, Any]) -> None:
        """Keep a finished part; not where a number is not finite, for which a note has no form."""
        numbers = [tensor.detach().flatten().tolist() for tensor in coefficients.parameters]
        if not all(map(math.isfinite, itertools.chain.from_iterable(numbers))):
            return
        note = Note(
            numbers=numbers,
            steps=fitted.steps,
            history=[(step, objective if math.isfinite(objective) else None) for step, objective in fitted.history],
            scale=fitted.scale,
            found=dict(found),
            tokens=self._read.to_json(),
        )
        self._notes.append({part: note.model_dump(mode="json")})

    def remove(self) -> None:
        """Remove all, once the artefact is complete; what cannot be removed stays."""
        with suppress(OSError):
            self._notes.path.unlink(missing_ok=True)
