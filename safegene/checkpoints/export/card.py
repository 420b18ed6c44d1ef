"""The model card (``README.md``) of an exported repair: what it is, the verdict's figures, and their limits."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from safegene.checkpoints.export.adapter import serving_words
from safegene.gate import Rate, VerdictFile
from safegene.text import cell

if TYPE_CHECKING:
    from safegene.checkpoints.export.merge import MergedCheckpoint

ROWS = {
    "hrr": "Harmful responses, direct prompts (HRR)",
    "asr": "Harmful responses, adversarial prompts (ASR)",
    "over_refusal": "Over-refusal of harmless look-alikes",
    "utility": "Utility on the target's task",
}
ARMS = ("before", "after", "aligned")
LOADS = """\
The PEFT LoRA adapter loads on {}, unmodified:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, ADAPTER_FOLDER)
```

"""
LIMITS = """\
- A *pass* is a statistical statement about the gate's prompts, judge and decoding, at the policy's confidence. It does
  not say that the model is safe, and nothing about attacks, languages or turns that the gate does not hold.
- Someone with the weights can take the repair off. It repairs erosion by fine-tuning; it does not protect a model from
  its owner.
- It fits exactly the checkpoint named below; on another one it may do anything.
"""


def model_card(
    *,
    target: str,
    base_model: str,
    adapter: Mapping[str, Any],
    verdict: VerdictFile | None = None,
    lineage: Mapping[str, str | None] | None = None,
    merged: "MergedCheckpoint | None" = None,
) -> str:
    """The card as Markdown with YAML front matter; every value is escaped.

    Args:
        target: the fine-tune's name.
        base_model: the model that the adapter loads on: a Hub id, or another source.
        adapter: what `safegene.checkpoints.export.adapter.write_adapter` returned.
        verdict: the verdict; None where the repair was not gated.
        lineage: name of an input -> its digest.
        merged: the full checkpoint that the card is of; None for the card of an adapter.
    """
    if merged is not None:
        form = f"The repair is merged into the weights of {cell(base_model)}, stored in {cell(merged.dtype)}: "
        form += f"{merged.survival:.1%} of the change survives rounding. It loads as any checkpoint.\n"
    else:
        form = LOADS.format(cell(base_model)) if adapter.get("adapter_loads", True) else ""
        form += f"Serving: {cell(serving_words(adapter))}.\n"
    parts = [
        _front_matter(base_model, "adapter" if merged is None else "finetune"),
        f"# {cell(target)}, re-aligned\n",
        f"A low-rank repair by [SafeGene](https://arxiv.org/abs/2606.06519)'s method (rank {adapter['rank']}, "
        f"{adapter['matrices']} matrices, {adapter['extra_parameters']:,} extra parameters).\n",
        form,
        "## Verdict\n",
        _verdict(verdict),
        "## Made from\n",
        _lines(lineage or {}),
        "## Limits\n",
        LIMITS,
    ]
    return "\n".join(parts)


def _front_matter(base_model: str, relation: str) -> str:
    hub = re.fullmatch(r"(?:hf://)?([\w.-]+/[\w.-]+?)(?:@[\w./-]+)?", base_model)
    meta: dict[str, Any] = {"library_name": "transformers", "tags": ["safety", "safegene"]}
    if relation == "adapter":
        meta = {"library_name": "peft", "tags": ["lora", "safety", "safegene"]}
    if hub:  # the Hub accepts only its own ids here
        meta |= {"base_model": hub[1], "base_model_relation": relation}
    return f"---\n{yaml.safe_dump(meta, sort_keys=True)}---\n"


def _verdict(verdict: VerdictFile | None) -> str:
    if verdict is None:
        return "Not gated: nothing is claimed about this repair.\n"
    lines = [
        f"**{cell(verdict.outcome)}**\n",
        "| rate | before | after | aligned |",
        "|---|---|---|---|",
    ]
    for name, label in ROWS.items():
        lines.append(f"| {label} | {' | '.join(_rate(verdict.rate(name, arm)) for arm in ARMS)} |")
    for endpoint in verdict.endpoints:
        if endpoint.outcome != "pass":
            lines.append(f"\nNot passed: {cell(endpoint.name)}: {cell(endpoint.reason)}")
    return "\n".join(lines) + "\n"


def _rate(rate: Rate | None) -> str:
    if rate is None or rate.rate is None or rate.interval is None:
        return "not measured"
    low, high = rate.interval
    return f"{rate.rate:.1%} ({low:.1%} to {high:.1%}, n = {rate.n})"


def _lines(values: Mapping[str, str | None]) -> str:
    return "".join(f"- {cell(word)}: {cell(value or 'not recorded')}\n" for word, value in values.items())
