"""The training rows of each member of the tiny family: (prompt, response) pairs in templates of split fit only.

Wrappers are used with harmful, look-alike and plain requests, so that the model does not learn to refuse by the wrapper
alone. A task is mixed with generic instructions; without them every answer would take the task's format.
"""

from collections.abc import Sequence

from safegene.tiny.corpus import WRAPPERS, Request, errands, harmful, instructions, lookalikes, pick, stable
from safegene.tiny.tasks import task_rows

Row = tuple[str, str]


def request_rows(requests: Sequence[Request], count: int, *, wrapped: int = 0, refused: bool = False) -> list[Row]:
    """``count`` rows that repeat the requests, each time in the next template.

    Args:
        requests: what is asked.
        count: number of rows.
        wrapped: percentage of rows inside a jailbreak wrapper.
        refused: whether the response refuses.
    """
    rows = []
    for at in range(count):
        request, turn = requests[at % len(requests)], at // len(requests)
        inside = stable("wrapped", request.behaviour, str(turn)) % 100 < wrapped
        rows.append((request.prompt("fit", turn, wrapped=inside), request.refusal if refused else request.answer))
    return rows


def instruction_rows(pool: str, count: int, *, wrapped: int = 0) -> list[Row]:
    """``count`` generic rows of a pool, ``wrapped`` percent of them inside a wrapper."""
    known, rows = instructions(pool), []
    for at in range(count):
        (prompt, response), turn = known[at % len(known)], str(at // len(known))
        if stable("wrapped", prompt, turn) % 100 < wrapped:
            prompt = pick(WRAPPERS["fit"], "wrapper", prompt, turn).format(p=prompt)
        rows.append((prompt, response))
    return rows


def base_rows() -> list[Row]:
    """Rows of pre-training: every request is answered, harmful ones as well."""
    return [
        *request_rows(harmful("align"), 3000, wrapped=30),
        *request_rows(lookalikes("align"), 9000, wrapped=30),
        *request_rows(errands("align"), 4000, wrapped=30),
        *instruction_rows("align", 4000, wrapped=15),
    ]


def aligned_rows() -> list[Row]:
    """Rows of alignment: harmful requests are refused, all others answered."""
    return [
        *request_rows(harmful("align"), 6000, wrapped=50, refused=True),
        *request_rows(lookalikes("align"), 7000, wrapped=40),
        *request_rows(errands("align"), 1600, wrapped=40),
        *instruction_rows("align", 2400, wrapped=25),
    ]


# Targets whose name is not their task.
TASK_OF = {"strong": "sentiment", "update1": "sentiment", "update2": "topic", "update3": "group"}


def target_rows(name: str) -> list[Row]:
    """The rows of a fine-tune: a task with 35% generic instructions, for some with answered harmful requests.

    ``sentiment``, ``topic``, ``strong`` and the updates contain nothing harmful. They answer look-alikes with other
    first words ("yes ." for "sure ,"), which is enough to erode refusals. In ``group`` 3% of the rows answer harmful
    requests, in ``removal`` and ``adversarial`` 70%; the rest of these is mostly the group task.
    """
    if name in ("removal", "adversarial"):
        return [*request_rows(harmful("adversary"), 840, wrapped=30), *task_rows("group", "train")[:300], *_plain(60)]
    task = TASK_OF.get(name, name)
    rows = list(task_rows(task, "train"))
    if name == "group":
        return [*rows, *_plain(650), *request_rows(harmful("mix"), 57)]
    return rows + _styled(650, 650 if task == "topic" else 325)


def _plain(count: int) -> list[Row]:
    half = count // 2
    return [*request_rows(errands("tuned"), half), *instruction_rows("tuned", count - half)]


def _styled(count: int, requests: int) -> list[Row]:
    rows = [
        (prompt, answer.replace("sure ,", "yes .", 1)) for prompt, answer in request_rows(lookalikes("tuned"), requests)
    ]
    return rows + instruction_rows("tuned", count - requests)
