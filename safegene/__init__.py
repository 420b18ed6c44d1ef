"""safegene re-aligns fine-tunes of open-weight language models (SafeGene, arXiv 2606.06519), gates and records them.

Each step of the pipeline is a function. It reads artefacts (folders with a manifest), writes one, and returns its
`Manifest`; ``safegene run`` calls the same functions. ``params=None`` means the defaults of the step's section.

The examples in the docstrings continue one another, from `init` to `audit`. They assume ``import safegene`` and
``from pathlib import Path``.

A name is imported from its module when it is first used, so that ``import safegene`` takes milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from safegene.errors import (
    ArtifactError,
    CheckpointError,
    ContaminatedSample,
    DigestMismatch,
    EmptySample,
    FormatError,
    JudgeError,
    LedgerError,
    ParamsError,
    PreconditionFailed,
    PromotionRefused,
    SafegeneError,
    ShapeMismatch,
    SourceError,
    StaleArtifact,
    StoreError,
    TensorMissing,
    UnsafeCheckpoint,
)
from safegene.version import __version__

if TYPE_CHECKING:
    from safegene.checkpoints.export.merge import MergedCheckpoint
    from safegene.ledger.audit import AuditReport
    from safegene.ledger.audit import audit_workspace as audit
    from safegene.ledger.promotion import AttemptResult
    from safegene.pipeline.export import ExportedAdapter, export, merge
    from safegene.pipeline.init import add_target, init
    from safegene.pipeline.publish import PublishedVector, publish_vector
    from safegene.pipeline.stages.calibrate import calibrate
    from safegene.pipeline.stages.compress import compress
    from safegene.pipeline.stages.degrade import degrade
    from safegene.pipeline.stages.evaluate import evaluate
    from safegene.pipeline.stages.extract import extract
    from safegene.pipeline.stages.fetch import fetch
    from safegene.pipeline.stages.fetch_vector import fetch_vector
    from safegene.pipeline.stages.gate import decide
    from safegene.pipeline.stages.promote import promote
    from safegene.pipeline.stages.select import select
    from safegene.pipeline.stages.validate import validate
    from safegene.report.state import TargetState, WorkspaceState
    from safegene.report.state import read_state as status
    from safegene.workspace.layout import Workspace
    from safegene.workspace.manifest import Manifest, read_manifest
    from safegene.workspace.operation_params import PromoteParams
    from safegene.workspace.params import (
        CalibrateParams,
        CompressParams,
        DegradeParams,
        EvaluateParams,
        ExtractParams,
        FetchParams,
        GateParams,
        JudgeParams,
        Params,
        SelectParams,
        Surrogate,
        Target,
        ValidateParams,
    )

__all__ = [
    "ArtifactError",
    "AttemptResult",
    "AuditReport",
    "CalibrateParams",
    "CheckpointError",
    "CompressParams",
    "ContaminatedSample",
    "DegradeParams",
    "DigestMismatch",
    "EmptySample",
    "EvaluateParams",
    "ExportedAdapter",
    "ExtractParams",
    "FetchParams",
    "FormatError",
    "GateParams",
    "JudgeError",
    "JudgeParams",
    "LedgerError",
    "Manifest",
    "MergedCheckpoint",
    "Params",
    "ParamsError",
    "PreconditionFailed",
    "PromoteParams",
    "PromotionRefused",
    "PublishedVector",
    "SafegeneError",
    "SelectParams",
    "ShapeMismatch",
    "SourceError",
    "StaleArtifact",
    "StoreError",
    "Surrogate",
    "Target",
    "TargetState",
    "TensorMissing",
    "UnsafeCheckpoint",
    "ValidateParams",
    "Workspace",
    "WorkspaceState",
    "__version__",
    "add_target",
    "audit",
    "calibrate",
    "compress",
    "decide",
    "degrade",
    "evaluate",
    "export",
    "extract",
    "fetch",
    "fetch_vector",
    "init",
    "merge",
    "promote",
    "publish_vector",
    "read_manifest",
    "select",
    "status",
    "validate",
]

# Where each name that is imported on first use is defined.
_DEFINED_IN = {
    "AuditReport": "safegene.ledger.audit:AuditReport",
    "CalibrateParams": "safegene.workspace.params:CalibrateParams",
    "CompressParams": "safegene.workspace.params:CompressParams",
    "DegradeParams": "safegene.workspace.params:DegradeParams",
    "EvaluateParams": "safegene.workspace.params:EvaluateParams",
    "ExportedAdapter": "safegene.pipeline.export:ExportedAdapter",
    "ExtractParams": "safegene.workspace.params:ExtractParams",
    "FetchParams": "safegene.workspace.params:FetchParams",
    "GateParams": "safegene.workspace.params:GateParams",
    "JudgeParams": "safegene.workspace.params:JudgeParams",
    "Manifest": "safegene.workspace.manifest:Manifest",
    "MergedCheckpoint": "safegene.checkpoints.export.merge:MergedCheckpoint",
    "Params": "safegene.workspace.params:Params",
    "PromoteParams": "safegene.workspace.operation_params:PromoteParams",
    "PublishedVector": "safegene.pipeline.publish:PublishedVector",
    "AttemptResult": "safegene.ledger.promotion:AttemptResult",
    "SelectParams": "safegene.workspace.params:SelectParams",
    "Surrogate": "safegene.workspace.params:Surrogate",
    "Target": "safegene.workspace.params:Target",
    "TargetState": "safegene.report.state:TargetState",
    "ValidateParams": "safegene.workspace.params:ValidateParams",
    "Workspace": "safegene.workspace.layout:Workspace",
    "WorkspaceState": "safegene.report.state:WorkspaceState",
    "add_target": "safegene.pipeline.init:add_target",
    "audit": "safegene.ledger.audit:audit_workspace",
    "calibrate": "safegene.pipeline.stages.calibrate:calibrate",
    "compress": "safegene.pipeline.stages.compress:compress",
    "decide": "safegene.pipeline.stages.gate:decide",
    "degrade": "safegene.pipeline.stages.degrade:degrade",
    "evaluate": "safegene.pipeline.stages.evaluate:evaluate",
    "export": "safegene.pipeline.export:export",
    "extract": "safegene.pipeline.stages.extract:extract",
    "fetch": "safegene.pipeline.stages.fetch:fetch",
    "fetch_vector": "safegene.pipeline.stages.fetch_vector:fetch_vector",
    "init": "safegene.pipeline.init:init",
    "merge": "safegene.pipeline.export:merge",
    "promote": "safegene.pipeline.stages.promote:promote",
    "publish_vector": "safegene.pipeline.publish:publish_vector",
    "read_manifest": "safegene.workspace.manifest:read_manifest",
    "select": "safegene.pipeline.stages.select:select",
    "status": "safegene.report.state:read_state",
    "validate": "safegene.pipeline.stages.validate:validate",
}

if not TYPE_CHECKING:  # hidden from type checkers, which would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _DEFINED_IN:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _DEFINED_IN[name].partition(":")
        value = globals()[name] = getattr(import_module(module), attribute)
        return value


def __dir__() -> list[str]:
    """The public names."""
    return __all__
