"""``dvc.yaml``: the stages of the template, or those of a workspace whose vector is fetched (`pipeline_of`).

DVC has no conditional stages, and no two stages may write one folder. So the file has either the stages that make the
vector or the one that fetches it, and `write_stages` exchanges them when ``family.vector`` is set or removed.
"""

import logging
import re

from safegene.errors import ParamsError
from safegene.pipeline.init import template_folder
from safegene.pipeline.table import PIPELINE
from safegene.workspace.atomic import write_file
from safegene.workspace.layout import Workspace

NAME = "dvc.yaml"
MADE = tuple(stage.name for stage in PIPELINE if stage.vector == "made")
FETCH_VECTOR = """\
  fetch-vector:
    desc: the safety vector and its layer selection, as their publisher signed them
    cmd: exec safegene fetch-vector
    deps:
      - data/family/aligned
      - data/prompts/gate.jsonl
    params:
      - family.vector
      - family.publisher
      - data/targets.yaml:
          - vector
    outs:
      - data/family/published
      - data/family/vector
      - data/family/selection

"""
DEGRADED = "        - data/family/degraded\n"  # an input of calibrate
BEFORE_DEGRADED = "        - data/family/selection\n"
_STAGE = re.compile(r"^  ([a-z-]+):\n(?:(?:    .*)?\n)*", re.M)
log = logging.getLogger(__name__)


def write_stages(ws: Workspace) -> bool:
    """Make ``dvc.yaml`` hold the stages that ``family.vector`` asks for; the other stages stay as they are.

    Returns:
        Whether the file was changed.

    Raises:
        ParamsError: its stages cannot be found.
    """
    path, published = ws.root / NAME, ws.params.family.vector is not None
    text = path.read_text(encoding="utf-8")
    if ("fetch-vector" in stages_of(text)) == published:
        return False
    write_file(path, fetching(text) if published else making(text))
    log.info("%s: the vector is %s from now on", NAME, "fetched" if published else "made here")
    return True


def stages_of(text: str) -> dict[str, str]:
    """Name -> text of each stage of a ``dvc.yaml``."""
    return {found[1]: found[0] for found in _STAGE.finditer(text)}


def fetching(text: str) -> str:
    """A ``dvc.yaml`` with ``fetch-vector`` in the place of the stages that make the vector."""
    stages = stages_of(text)
    if missing := [name for name in (*MADE, "calibrate") if name not in stages]:
        raise _changed(missing[0])
    text = text.replace(stages[MADE[0]], FETCH_VECTOR, 1)
    for name in MADE[1:]:
        text = text.replace(stages[name], "", 1)
    return text.replace(stages["calibrate"], stages["calibrate"].replace(DEGRADED, "", 1), 1)


def making(text: str) -> str:
    """A ``dvc.yaml`` with the template's stages that make the vector in the place of ``fetch-vector``."""
    stages = stages_of(text)
    if "calibrate" not in stages or BEFORE_DEGRADED not in stages["calibrate"]:
        raise _changed("calibrate")
    template = stages_of((template_folder() / NAME).read_text(encoding="utf-8"))
    text = text.replace(stages["fetch-vector"], "".join(template[name] for name in MADE), 1)
    inputs = stages["calibrate"].replace(BEFORE_DEGRADED, BEFORE_DEGRADED + DEGRADED, 1)
    return text.replace(stages["calibrate"], inputs, 1)


def _changed(stage: str) -> ParamsError:
    return ParamsError(
        f"expected the stage {stage} in {NAME}, indented as in the template, got none",
        remedy=f"take {NAME} from a new workspace (`safegene init DIR`), and put your changes into it again",
    )
