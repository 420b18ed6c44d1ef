"""Section ``record`` of ``params.yaml``."""

from safegene.workspace.fields import Frozen, PositiveFloat


class RecordParams(Frozen):
    """What people state for every record: it is signed with the record, and nothing checks it.

    ``use`` and ``limits``: what the models are meant for, and not. ``risks``: ids of the risks that the repair
    mitigates. ``retention``: the class under which records are kept. ``base_training_tokens``: of the base model's
    training, to state the compute as a share of it.
    """

    use: str | None = None
    limits: tuple[str, ...] = ()
    licence: str | None = None
    risks: tuple[str, ...] = ()
    retention: str | None = None
    base_training_tokens: PositiveFloat | None = None
