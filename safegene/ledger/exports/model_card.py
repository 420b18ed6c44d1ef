"""A release as a Hugging Face model card: the card of an exported adapter, with the measured rates as EvalResults."""

from typing import TYPE_CHECKING, Any

from safegene.checkpoints.export.base_model import base_model_name
from safegene.checkpoints.export.card import model_card as adapter_card
from safegene.checkpoints.record import CheckpointRecord
from safegene.errors import FormatError, LedgerError
from safegene.gate import VerdictFile
from safegene.ledger.exports.facts import ARM_WORDS, RATE_WORDS, mapping, measured_rates
from safegene.ledger.record import Record
from safegene.ledger.release import release_file, release_manifests
from safegene.ledger.store import Store
from safegene.workspace.parsing import parse_json

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def model_card(record: Record, store: Store) -> str:
    """The card as Markdown with YAML front matter.

    ``base_model`` names the Hub id of the model that the adapter loads on, where it has one, and the source otherwise;
    ``base_model_relation`` is ``adapter``. Each EvalResult is a rate of the candidate, in 0..1.

    Raises:
        LedgerError: the record has no release, or its release has no adapter.
        DigestMismatch, FormatError: a file of the release is changed or malformed.
    """
    from huggingface_hub import ModelCard

    if record.release is None:
        raise LedgerError(
            f"expected a record with a release, got record {record.sequence} of outcome {record.outcome!r}",
            remedy="choose a record of outcome pass or rollback: `safegene audit history TARGET`",
        )
    candidate = release_manifests(store, record.release)["candidate"]
    base = _base_model(record, store)
    where = f"{store.uri}: verdict.json of {record.release}"
    text = adapter_card(
        target=record.target,
        base_model=base,
        adapter=candidate.facts,
        verdict=VerdictFile.parse(release_file(store, record.release, "verdict/verdict.json"), where=where),
        lineage={"record": record.digest, "release": record.release, "candidate": candidate.digest, **candidate.inputs},
    )
    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    data.base_model, data.base_model_relation = base, "adapter"
    data.model_name, data.eval_results = record.target, _results(record)
    return str(card)


def _base_model(record: Record, store: Store) -> str:
    """The name of what the adapter loads on: the aligned model of a LoRA target, otherwise the target."""
    kind = mapping(record.predicate.model).get("kind")
    name = "aligned" if kind == "lora" else "target"
    path = f"{name}/checkpoint.json"
    data = release_file(store, str(record.release), path)
    try:
        return base_model_name(parse_json(CheckpointRecord, data, where=path))[0]
    except FormatError:  # a record of an earlier version of safegene
        source = mapping(record.predicate.base if kind == "lora" else record.predicate.model).get("source", "")
        return str(source).removeprefix("hf://").partition("@")[0] if str(source).startswith("hf://") else str(source)


def _results(record: Record) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    suites = mapping(mapping(record.predicate.suite).get("suites"))
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="safegene-gate",
            dataset_name="task set" if one.name == "utility" else "gate suite",
            dataset_revision=str(suites.get("task" if one.name == "utility" else "gate", "")),
            metric_type=one.name,
            metric_name=f"{RATE_WORDS.get(one.name, one.name)} of the {ARM_WORDS[one.arm]}, n = {one.n}",
            metric_value=one.rate,
            metric_args={"interval_95": [one.low, one.high], "n": one.n},
        )
        for one in measured_rates(record)
        if one.arm == "after"
    ]
