"""Every error that safegene raises on purpose.

SafegeneError
├── ParamsError            params.yaml, targets.yaml or an argument is unusable
├── ArtifactError          an artefact cannot be used
│   ├── FormatError        it is malformed
│   ├── DigestMismatch     its bytes differ from the recorded digest
│   └── StaleArtifact      one of its inputs has changed since it was made
├── CheckpointError        a model checkpoint cannot be used
│   ├── TensorMissing      a tensor of the family is missing
│   ├── ShapeMismatch      a tensor or an architecture differs from the family's
│   └── UnsafeCheckpoint   opening it could run code, leave its folder or exhaust memory
├── SourceError            a checkpoint cannot be found or fetched
├── JudgeError             a judge cannot be built or does not answer
├── EmptySample            there is nothing to measure
├── ContaminatedSample     the gate would be measured on prompts used for fitting
├── StoreError             an object store failed or does not honour conditions
│   └── PreconditionFailed another writer was first
├── LedgerError            the ledger's chain or a signature is broken
└── PromotionRefused       the rules do not allow this promotion

A failing verdict is a value, not an error; only ``promote`` raises on it. No message and no remedy holds a secret
(`safegene.text.redact_text`).
"""

import errno

from safegene.text import redact_text


class SafegeneError(Exception):
    """An error with one sentence that says what was expected, what was found and where, and a remedy.

    Attributes:
        message: the sentence.
        remedy: what the user can do about it; by default what helps with most errors of the class, "" for none.
        exit_code: the exit code of a command that ends with this error.
        usual_remedy: of errors of the class that name no other.
        stage: the stage whose child process raised it, as DVC names it; "" if it was raised in this process.
        record: digest of the ledger record that reports it; "" if there is none.
    """

    exit_code = 1
    usual_remedy = ""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(redact_text(message))
        self.message = redact_text(message)
        self.remedy = redact_text(remedy) or self.usual_remedy
        self.stage = ""
        self.record = ""

    @property
    def summary(self) -> str:
        """Stage (if known), class and message, in one line."""
        where = f"stage {self.stage}: " if self.stage else ""
        return f"{where}{type(self).__name__}: {self.message}"


class ParamsError(SafegeneError):
    """params.yaml, targets.yaml or an argument is unusable."""

    exit_code = 2
    usual_remedy = "give what is expected; `safegene COMMAND --help` and docs/reference/parameters.md explain it"


class ArtifactError(SafegeneError):
    """An artefact cannot be used: it is missing, malformed, changed or out of date."""

    usual_remedy = "`safegene run` makes it, and what it is made from"


class FormatError(ArtifactError):
    """A file is malformed."""

    usual_remedy = (
        "correct the file that is named; or bring it back: `git checkout` where Git tracks it, `safegene run` where a "
        "stage makes it"
    )


class DigestMismatch(ArtifactError):
    """The bytes of an artefact differ from the recorded digest."""

    usual_remedy = (
        "bring the bytes back: `safegene run` or `dvc checkout` for an artefact, `git checkout` or the store's backup "
        "for the ledger; `safegene audit verify` names all that differ"
    )


class StaleArtifact(ArtifactError):
    """An input of an artefact has changed since it was made."""

    usual_remedy = "`safegene run` makes it again from what is there now"


class CheckpointError(SafegeneError):
    """A model checkpoint cannot be used."""

    usual_remedy = "name a complete checkpoint of the family in safetensors; docs/how-to/targets.md lists what fits"


class TensorMissing(CheckpointError):
    """A tensor of the family is missing."""


class ShapeMismatch(CheckpointError):
    """A tensor or an architecture differs from the family's."""


class UnsafeCheckpoint(CheckpointError):
    """Opening the checkpoint could run code, leave its folder or exhaust memory."""


class SourceError(SafegeneError):
    """A checkpoint cannot be found or fetched."""

    usual_remedy = "check the address, and that this machine may read it; docs/how-to/targets.md lists the sources"


class JudgeError(SafegeneError):
    """A judge cannot be built or does not answer."""

    usual_remedy = "see docs/reference/judges.md for what each judge needs in evaluate.judge"


class EmptySample(SafegeneError):
    """There is nothing to measure."""

    usual_remedy = "add rows to the set that is named; docs/data.md says what each stage needs"


class ContaminatedSample(SafegeneError):
    """The gate would be measured on prompts used for fitting."""

    usual_remedy = "remove the rows that are named from one of the two sets"


class StoreError(SafegeneError):
    """An object store failed or does not honour conditions."""

    usual_remedy = "check address, credentials and network, and run it again; docs/how-to/s3.md has the settings"


class PreconditionFailed(StoreError):
    """Another writer was first."""


class LedgerError(SafegeneError):
    """The ledger's chain or a signature is broken."""

    usual_remedy = "`safegene audit verify` names all that is wrong; restore it by `git checkout`, or in the store"


class PromotionRefused(SafegeneError):
    """The rules do not allow this promotion."""

    exit_code = 3
    usual_remedy = "see `safegene status` and `safegene audit history TARGET` for what is live and why"


def as_safegene_error(error: BaseException) -> SafegeneError:
    """Any exception as an error with one sentence: of the disk, of memory, or one that nobody expected."""
    if isinstance(error, SafegeneError):
        return error
    text = " ".join(str(error).split())[:300]
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in text or "disk is full" in text:
        where = getattr(error, "filename", None) or "the workspace, the cache, the temporary folder or the output"
        remedy = "free some space there and run the command again: what was complete before is kept"
        return SafegeneError(f"expected room to write {where}, got a full disk", remedy=remedy)
    if isinstance(error, OSError) and error.filename is not None:
        return SafegeneError(f"expected to use {error.filename}, got {error.strerror}")
    if isinstance(error, MemoryError):
        remedy = "use a machine with more memory, or a smaller batch_size in params.yaml"
        return SafegeneError("expected enough memory, got none left", remedy=remedy)
    remedy = "`safegene --debug ...` shows the trace; please report it"
    return SafegeneError(f"expected no {type(error).__name__}, got: {text}", remedy=remedy)
