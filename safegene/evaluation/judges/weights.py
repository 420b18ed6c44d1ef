"""Where a judge's model lies: a local folder, or a Hub id at a pinned revision."""

from collections.abc import Sequence
from pathlib import Path

from safegene.errors import JudgeError


def model_folder(model: str, revision: str | None, files: Sequence[str], into: Path | None = None) -> Path:
    """The folder of ``model``; one of the Hub is fetched, its ``files`` only, in whole files below ``into`` if given.

    Raises:
        JudgeError: a Hub id without a revision, or the Hub does not have it.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if not revision:
        raise JudgeError(
            f"expected a folder or a Hub id with a revision, got {model!r} alone, in evaluate.judge",
            remedy="set evaluate.judge.revision to a commit, so that the judge cannot change under its name",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    place = None if into is None else into / f"{model}@{revision}".replace("/", "--")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(files), local_dir=place))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise JudgeError(f"expected the judge {model}@{revision} on the Hub, got {error}") from error
