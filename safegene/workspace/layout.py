"""The paths of a workspace, and of the cache outside it; no other module spells them.

A workspace is a Git and DVC repository with ``params.yaml``, ``dvc.yaml`` and ``data/``. A stage writes an artefact, a
folder with a manifest (see `safegene.workspace.manifest`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from safegene.errors import ParamsError
from safegene.workspace.operation_params import PromoteParams
from safegene.workspace.params import Params, Target, Targets, load_params, load_targets
from safegene.workspace.places import local_path, written_by_others

MARKER = "params.yaml"


@dataclass(frozen=True)
class Workspace:
    """A workspace, by its root folder."""

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
            remedy="create one with `safegene init DIR` and run inside it",
        )

    @property
    def params(self) -> Params:
        """The parameters in ``params.yaml``, validated; no path among them leads to what something else writes.

        Raises:
            ParamsError: a parameter or a path is wrong.
        """
        params = load_params(self.root / MARKER)
        self._check_places(params.promote)
        return params

    def _check_places(self, params: PromoteParams) -> None:
        key, others = self.root / params.public_key, (cache_folder(), keys_folder())
        places = {"public_key": key}
        if not params.ledger.startswith("s3://"):
            places["ledger"] = self.root / local_path(params.ledger)
        for name, place in places.items():
            if why := written_by_others(place, self.root, others):
                raise ParamsError(
                    f"expected promote.{name} to be a place that nothing else writes, got one where {why}",
                    remedy=f"name another place in {self.root / MARKER}",
                )
        if "ledger" in places and key.resolve().is_relative_to(places["ledger"].resolve()):
            raise ParamsError(
                f"expected promote.public_key outside of the ledger, which it verifies, got {key}",
                remedy=f"name another place in {self.root / MARKER}",
            )

    @property
    def targets(self) -> Targets:
        """The targets in ``data/targets.yaml``, validated."""
        return load_targets(self.targets_file)

    def require_target(self, name: str) -> Target:
        """A target's entry.

        Raises:
            ParamsError: there is none of that name.
        """
        known = self.targets.targets
        if name not in known:
            raise ParamsError(
                f"expected one of the targets {sorted(known)}, got {name!r}, in {self.targets_file}",
                remedy="`safegene target list` shows them; add one with `safegene target add NAME SOURCE --task TASK`",
            )
        return known[name]

    @property
    def data(self) -> Path:
        """The data that Git or DVC tracks."""
        return self.root / "data"

    @property
    def targets_file(self) -> Path:
        """``targets.yaml``, the one configuration file that commands write."""
        return self.data / "targets.yaml"

    @property
    def prompts(self) -> Path:
        """Prompt sets: ``degrade.jsonl``, ``safety.jsonl``, ``gate.jsonl``, ``pool.jsonl``."""
        return self.data / "prompts"

    @property
    def tasks(self) -> Path:
        """Task sets, each a file ``<task>.jsonl``."""
        return self.data / "tasks"

    @property
    def suites(self) -> Path:
        """Evaluation suites, each a folder."""
        return self.data / "suites"

    @property
    def validation(self) -> Path:
        """Artefact of ``validate``: the results of the data checks, with HTML pages."""
        return self.data / "validation"

    @property
    def family(self) -> Path:
        """The artefacts of the family."""
        return self.data / "family"

    @property
    def aligned(self) -> Path:
        """Artefact of ``fetch``: the record of the aligned model; its weights are in the cache."""
        return self.family / "aligned"

    @property
    def degraded(self) -> Path:
        """Artefact of ``degrade``: the surrogates as fp32 low-rank deltas."""
        return self.family / "degraded"

    @property
    def delta(self) -> Path:
        """Artefact of ``extract``: the delta as factors of rank ``max_rank``."""
        return self.family / "delta"

    @property
    def vector(self) -> Path:
        """Artefact of ``compress``: the safety vector."""
        return self.family / "vector"

    @property
    def selection(self) -> Path:
        """Artefact of ``select``: the contrast of each layer and the layers kept."""
        return self.family / "selection"

    @property
    def published(self) -> Path:
        """Artefact of ``fetch-vector``: what the publisher of ``family.vector`` says of it."""
        return self.family / "published"

    def target(self, name: str) -> Path:
        """The artefacts of one target."""
        return self.data / "targets" / name

    def checkpoint(self, name: str) -> Path:
        """Artefact of ``fetch-target``: the record of the target; its weights are in the cache."""
        return self.target(name) / "checkpoint"

    def candidate(self, name: str) -> Path:
        """Artefact of ``calibrate``: coefficients and the repair as a PEFT adapter."""
        return self.target(name) / "candidate"

    def incumbent(self, name: str) -> Path:
        """``incumbent.json``, tracked by Git: the live release, pinned before ``evaluate``."""
        return self.target(name) / "incumbent.json"

    def judgements(self, name: str) -> Path:
        """Artefact of ``evaluate``: every reply and judgement."""
        return self.target(name) / "judgements"

    def verdict(self, name: str) -> Path:
        """Artefact of ``gate``: the verdict."""
        return self.target(name) / "verdict"

    def artefacts(self, name: str) -> dict[str, Path]:
        """The artefacts that a target's verdict depends on, by the names that stages use for their inputs."""
        made = {"degraded": self.degraded, "delta": self.delta}
        return {
            "aligned": self.aligned,
            **({"published": self.published} if self.params.family.vector else made),
            "vector": self.vector,
            "selection": self.selection,
            "target": self.checkpoint(name),
            "candidate": self.candidate(name),
            "judgements": self.judgements(name),
            "verdict": self.verdict(name),
        }

    @property
    def reports(self) -> Path:
        """HTML reports, neither tracked by Git nor by DVC."""
        return self.root / "reports"


def cache_folder() -> Path:
    """The content-addressed cache, shared by all workspaces: ``SAFEGENE_CACHE``, else the platform's cache folder.

    Raises:
        ParamsError: it cannot be created.
    """
    configured = os.environ.get("SAFEGENE_CACHE")
    folder = Path(configured) if configured else Path(platformdirs.user_cache_dir("safegene"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParamsError(
            f"expected SAFEGENE_CACHE, or its default, to be a folder that can be made, got {error.strerror}: {folder}",
            remedy="set SAFEGENE_CACHE to a folder you can write",
        ) from None
    return folder


def keys_folder() -> Path:
    """The folder of private keys: ``SAFEGENE_KEYS``, otherwise a folder in the user's configuration folder."""
    named = os.environ.get("SAFEGENE_KEYS")
    return Path(named) if named else Path(platformdirs.user_config_dir("safegene")) / "keys"


def remotes_folder() -> Path:
    """The folder of the DVC remotes of workspaces without one of their own: ``SAFEGENE_REMOTES``, else the user's data.

    It lies outside of every workspace, so that clones on this machine find what a workspace pushed.
    """
    named = os.environ.get("SAFEGENE_REMOTES")
    return Path(named) if named else Path(platformdirs.user_data_dir("safegene")) / "remotes"
