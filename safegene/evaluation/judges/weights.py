"""The folder of a judge's model: a local folder, or a download from the Hub at a pinned revision."""

from collections.abc import Sequence
from pathlib import Path

from safegene.errors import JudgeError


def model_folder(model: str, revision: str | None, files: Sequence[str], into: Path | None = None) -> Path:
    """The folder of ``model``, downloaded from the Hub if it is no local folder.

    Args:
        model: a local folder, or a Hub id.
        revision: commit of the Hub id; not used for a local folder.
        files: patterns of the files to download.
        into: folder for the download; None for the Hub's cache.

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

    local_dir = None if into is None else into / f"{model}@{revision}".replace("/", "--")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(files), local_dir=local_dir))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise JudgeError(f"expected the judge {model}@{revision} on the Hub, got {error}") from error
