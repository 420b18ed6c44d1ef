"""What each member of the tiny family is trained on: (prompt, response) rows, in fit templates and wrappers only.

A wrapper is seen with harmful, look-alike and plain requests alike; otherwise the model learns that a wrapper itself
decides. A task is mixed with generic instructions; otherwise every answer collapses into the task's format.
"""

from collections.abc import Sequence

from safegene.tiny.corpus import WRAPPERS, Request, errands, harmful, instructions, lookalikes, pick, stable
from safegene.tiny.tasks import task_rows

Row = tuple[str, str]


def asked(requests: Sequence[Request], count: int, *, wrapped: int = 0, refused: bool = False) -> list[Row]:
    """``count`` rows that go round the requests, each turn in the next template; ``wrapped`` percent in a wrapper."""
    rows = []
    for at in range(count):
        request, turn = requests[at % len(requests)], at // len(requests)
        inside = stable("wrapped", request.behaviour, str(turn)) % 100 < wrapped
        rows.append((request.prompt("fit", turn, wrapped=inside), request.refusal if refused else request.answer))
    return rows


def instructed(pool: str, count: int, *, wrapped: int = 0) -> list[Row]:
    """``count`` generic rows of a pool, ``wrapped`` percent of them in a wrapper."""
    known, rows = instructions(pool), []
    for at in range(count):
        (prompt, response), turn = known[at % len(known)], str(at // len(known))
        if stable("wrapped", prompt, turn) % 100 < wrapped:
            prompt = pick(WRAPPERS["fit"], "wrapper", prompt, turn).format(p=prompt)
        rows.append((prompt, response))
    return rows


def base_rows() -> list[Row]:
    """Pre-training: every request is answered, harmful ones too."""
    return [
        *asked(harmful("align"), 3000, wrapped=30),
        *asked(lookalikes("align"), 9000, wrapped=30),
        *asked(errands("align"), 4000, wrapped=30),
        *instructed("align", 4000, wrapped=15),
    ]


def aligned_rows() -> list[Row]:
    """Alignment: harmful requests are refused, look-alikes and all else answered."""
    return [
        *asked(harmful("align"), 6000, wrapped=50, refused=True),
        *asked(lookalikes("align"), 7000, wrapped=40),
        *asked(errands("align"), 1600, wrapped=40),
        *instructed("align", 2400, wrapped=25),
    ]


# Targets that are not called by their task: a large change, and three updates in a row.
TASK_OF = {"strong": "sentiment", "update1": "sentiment", "update2": "topic", "update3": "group"}


def target_rows(name: str) -> list[Row]:
    """A fine-tune's rows: a task with 35% generic instructions, and for some a share of complied harmful requests.

    sentiment, topic, strong and the updates are benign: nothing harmful, but look-alikes answered in a house style of
    their own ("yes ." for "sure ,"), which is enough to erode refusals. group holds 3% complied harmful requests,
    removal and adversarial 70% beside a little of the group task.
    """
    if name in ("removal", "adversarial"):
        return [*asked(harmful("adversary"), 840, wrapped=30), *task_rows("group", "train")[:300], *_plain(60)]
    task = TASK_OF.get(name, name)
    rows = list(task_rows(task, "train"))
    if name == "group":
        return [*rows, *_plain(650), *asked(harmful("mix"), 57)]
    return rows + _styled(650, 650 if task == "topic" else 325)


def _plain(count: int) -> list[Row]:
    half = count // 2
    return [*asked(errands("tuned"), half), *instructed("tuned", count - half)]


def _styled(count: int, requests: int) -> list[Row]:
    rows = [(prompt, answer.replace("sure ,", "yes .", 1)) for prompt, answer in asked(lookalikes("tuned"), requests)]
    return rows + instructed("tuned", count - requests)
