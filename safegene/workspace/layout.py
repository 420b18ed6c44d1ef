"""Where every artefact of a pipeline repository lies, named once; and the cache outside it.

A workspace is a Git and DVC repository with ``params.yaml``, ``dvc.yaml`` and ``data/``. Everything a stage writes is a
folder with a manifest (see `safegene.workspace.manifest`), named here and nowhere else.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from safegene.errors import ParamsError
from safegene.workspace.params import Params, Targets, load_params, load_targets

MARKER = "params.yaml"


@dataclass(frozen=True)
class Workspace:
    """A pipeline repository, by its root folder."""

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> "Workspace":
        """The workspace at or above ``start`` (default: the current folder).

        Raises:
            ParamsError: there is none.
        """
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            if (folder / MARKER).is_file() and (folder / "dvc.yaml").is_file():
                return cls(folder)
        raise ParamsError(
            f"expected a safegene workspace (params.yaml and dvc.yaml) at or above {here}, got none",
            remedy="make one with `safegene init DIR` and run inside it",
        )

    @property
    def params(self) -> Params:
        """The checked ``params.yaml``."""
        return load_params(self.root / MARKER)

    @property
    def targets(self) -> Targets:
        """The checked ``data/targets.yaml``."""
        return load_targets(self.targets_file)

    @property
    def data(self) -> Path:
        """Everything that DVC or Git tracks as data."""
        return self.root / "data"

    @property
    def targets_file(self) -> Path:
        """The one file that machines write."""
        return self.data / "targets.yaml"

    @property
    def prompts(self) -> Path:
        """Prompt sets: ``degrade.jsonl``, ``safety.jsonl``, ``gate.jsonl``."""
        return self.data / "prompts"

    @property
    def tasks(self) -> Path:
        """Task sets, one ``<task>.jsonl`` each."""
        return self.data / "tasks"

    @property
    def suites(self) -> Path:
        """Evaluation suites, one folder each."""
        return self.data / "suites"

    @property
    def validation(self) -> Path:
        """Stage ``validate``: the receipt of the data's Great Expectations suites, with their HTML docs."""
        return self.data / "validation"

    @property
    def family(self) -> Path:
        """Artefacts made once per family."""
        return self.data / "family"

    @property
    def aligned(self) -> Path:
        """Stage ``fetch``: which checkpoint the aligned model is (a manifest; the bytes lie in the cache)."""
        return self.family / "aligned"

    @property
    def degraded(self) -> Path:
        """Stage ``degrade``: the surrogates as fp32 low-rank deltas."""
        return self.family / "degraded"

    @property
    def delta(self) -> Path:
        """Stage ``extract``: factors at ``max_rank``."""
        return self.family / "delta"

    @property
    def vector(self) -> Path:
        """Stage ``compress``: the safety vector."""
        return self.family / "vector"

    @property
    def selection(self) -> Path:
        """Stage ``select``: layer scores and the layers kept."""
        return self.family / "selection"

    def target(self, name: str) -> Path:
        """Artefacts made for one target."""
        return self.data / "targets" / name

    def checkpoint(self, name: str) -> Path:
        """Stage ``fetch-target``: which checkpoint the target is (a manifest; the bytes lie in the cache)."""
        return self.target(name) / "checkpoint"

    def candidate(self, name: str) -> Path:
        """Stage ``calibrate``: coefficients and the repair as a PEFT adapter."""
        return self.target(name) / "candidate"

    def incumbent(self, name: str) -> Path:
        """What is live for the target, pinned before ``evaluate``: ``incumbent.json``, tracked by Git."""
        return self.target(name) / "incumbent.json"

    def judgements(self, name: str) -> Path:
        """Stage ``evaluate``: every reply and judgement."""
        return self.target(name) / "judgements"

    def verdict(self, name: str) -> Path:
        """Stage ``gate``: the verdict."""
        return self.target(name) / "verdict"

    def artefacts(self, name: str) -> dict[str, Path]:
        """Every artefact behind a target's verdict, by the name that later stages give it as an input."""
        return {
            "aligned": self.aligned,
            "degraded": self.degraded,
            "delta": self.delta,
            "vector": self.vector,
            "selection": self.selection,
            "target": self.checkpoint(name),
            "candidate": self.candidate(name),
            "judgements": self.judgements(name),
            "verdict": self.verdict(name),
        }

    @property
    def reports(self) -> Path:
        """HTML reports: views of the artefacts, not tracked."""
        return self.root / "reports"


def cache_folder() -> Path:
    """The content-addressed cache outside every workspace: ``SAFEGENE_CACHE``, else the platform's cache folder.

    Raises:
        ParamsError: it cannot be made.
    """
    named = os.environ.get("SAFEGENE_CACHE")
    folder = Path(named) if named else Path(platformdirs.user_cache_dir("safegene"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParamsError(
            f"expected a folder for the cache, got {error}", remedy="set SAFEGENE_CACHE to a folder you can write"
        ) from None
    return folder
