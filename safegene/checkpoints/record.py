"""The record that a ``fetch`` artefact holds of its checkpoint: ``checkpoint.json``."""

from pathlib import Path
from typing import Any, Literal

from safegene.errors import FormatError
from safegene.workspace.digest import canonical_json
from safegene.workspace.fields import Digest
from safegene.workspace.manifest import read_manifest
from safegene.workspace.parsing import Strict, parse_json

RECORD = "checkpoint.json"


class CheckpointRecord(Strict):
    """A fetched checkpoint.

    Attributes:
        source: the URI that it came from.
        fingerprint: what the source held then, see `safegene.checkpoints.sources.fingerprint`.
        kind: a full checkpoint, or a LoRA adapter.
        digest: of ``files``.
        files: file name -> digest.
        vocabulary: see `safegene.checkpoints.vocabulary`; None without a tokenizer.
        architecture: digest of what must be equal where weights are compared, see `safegene.models.family`; an adapter
            has its base's.
        config: the values that decide the forward pass, see `safegene.models.config`; an adapter has its base's.
        tensors: tensor name -> shape, after tying; of an adapter, matrix name -> (out, r, in).
        parameters: how many numbers the full model has; tied ones count once.
        adapter_parameters: how many the adapter has, 0 for a full checkpoint.
        base: digest of the full checkpoint under an adapter, None for a full checkpoint.
        added_tokens: the tokens that a target has and the family does not, in the order of their ids.
    """

    source: str
    fingerprint: str
    kind: Literal["full", "lora"]
    digest: Digest
    files: dict[str, Digest]
    vocabulary: Digest | None
    architecture: Digest
    config: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    parameters: int
    adapter_parameters: int
    base: Digest | None
    added_tokens: tuple[str, ...] = ()

    @property
    def content(self) -> bytes:
        """The bytes of ``checkpoint.json``: canonical JSON and a newline."""
        return canonical_json(self.model_dump()) + b"\n"


def read_record(artefact: Path) -> CheckpointRecord:
    """``checkpoint.json`` of a ``fetch`` artefact, after verifying every file of the artefact.

    Raises:
        ArtifactError: the artefact is incomplete.
        DigestMismatch: a file has changed.
        FormatError: the file is missing or malformed.
    """
    read_manifest(artefact)
    path = artefact / RECORD
    if not path.is_file():
        raise FormatError(f"expected {RECORD}, got no such file, in {artefact}")
    return parse_json(CheckpointRecord, path.read_bytes(), where=str(path))
