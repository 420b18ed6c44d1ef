"""The model card (``README.md``) of a published safety vector: what it is of, how it was made, what it did."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from safegene.checkpoints.export.card import ROWS
from safegene.checkpoints.record import CheckpointRecord
from safegene.gate import Rate
from safegene.ledger.bundles import MeasuredEffect
from safegene.ledger.trace import leaves
from safegene.text import cell, percent
from safegene.workspace.manifest import Manifest

USE = """\
In a workspace of safegene, `params.yaml`:

```yaml
family:
  aligned: PLACE OF THE ALIGNED MODEL
  vector: PLACE OF THIS BUNDLE
  publisher: ID OF THE PUBLISHER'S KEY
```

Ask the publisher for the key's id by a way that you trust. safegene verifies its signature over every byte, and refuses
the vector with any other aligned model.
"""
LIMITS = """\
- It fits one aligned model, named below by digest, and fine-tunes of it.
- The rates were measured on the publisher's fine-tunes, prompts and judge. What it does for yours, your gate measures.
- Whoever has the vector can also subtract it.
"""


def vector_card(
    manifests: Mapping[str, Manifest],
    record: CheckpointRecord,
    *,
    prompts: Mapping[str, str],
    licence: str,
    base_model: str,
    effect: Sequence[MeasuredEffect],
) -> str:
    """The card as Markdown with YAML front matter; every value is escaped.

    Args:
        manifests: of ``aligned``, ``degraded``, ``delta``, ``vector`` and ``selection``.
        record: of the aligned model.
        prompts: prompt set that the vector was made with -> its digest.
        licence: under which it may be used.
        base_model: the aligned model's public name; "" for none.
        effect: what was measured with it.
    """
    vector, selection = manifests["vector"], manifests["selection"]
    facts = [
        f"{vector.facts['matrices']} matrices, {vector.facts['numbers']:,} numbers, {percent(vector.facts['energy'])} "
        "of the delta's energy",
        f"{selection.facts['kept']} of {selection.facts['layers']} layers selected",
        f"aligned model: {cell(base_model or 'not public')}, {cell(record.digest)}, {record.parameters:,} parameters",
        f"vector {vector.digest}",
        f"layer selection {selection.digest}",
        f"licence: {cell(licence)}",
    ]
    parts = [
        _front_matter(licence, base_model),
        "# Safety vector\n",
        "The low-rank difference between an aligned model and degraded copies of it, by the method of "
        "[SafeGene](https://arxiv.org/abs/2606.06519).\n",
        "".join(f"- {fact}\n" for fact in facts),
        "## Use\n",
        USE,
        "## Measured\n",
        _measured(effect),
        "## Recipe\n",
        "".join(_recipe(manifests)),
        "## Prompts\n",
        "Published by digest only (`shots.json`), so that nobody's gate asks what the vector was made with.\n",
        "".join(f"- {cell(name)}: {digest}\n" for name, digest in prompts.items()),
        "## Limits\n",
        LIMITS,
    ]
    return "\n".join(parts)


def _front_matter(licence: str, base_model: str) -> str:
    known = re.fullmatch(r"[A-Za-z0-9.-]+", licence)
    meta: dict[str, Any] = {"library_name": "safegene", "tags": ["safety", "safegene", "safety-vector"]}
    meta |= {"license": licence.lower()} if known else {"license": "other", "license_name": licence}
    if hub := re.fullmatch(r"([\w.-]+/[\w.-]+)@[0-9a-f]+", base_model):
        meta["base_model"] = hub[1]
    return f"---\n{yaml.safe_dump(meta, sort_keys=True)}---\n"


def _measured(effect: Sequence[MeasuredEffect]) -> str:
    if not effect:
        return "Nothing yet: no fine-tune that it repaired was gated.\n"
    lines = ["| fine-tune | verdict | rate | before | after | aligned |", "|---|---|---|---|---|---|"]
    for one in effect:
        for name, label in ROWS.items():
            arms = " | ".join(_rate(one.rates.get(name, {}).get(arm)) for arm in ("before", "after", "aligned"))
            lines.append(f"| {cell(one.target)} | {one.outcome} | {label} | {arms} |")
    judges = "".join(f"\nJudge: {cell(judge)}\n" for judge in sorted({one.judge for one in effect}))
    return "\n".join(lines) + "\n" + judges


def _rate(rate: Rate | None) -> str:
    if rate is None or rate.rate is None or rate.interval is None:
        return "not measured"
    low, high = rate.interval
    return f"{rate.rate:.1%} ({low:.1%} to {high:.1%}, n = {rate.n})"


def _recipe(manifests: Mapping[str, Manifest]) -> Iterator[str]:
    for name, manifest in manifests.items():
        if name == "aligned":
            continue
        values = ", ".join(f"{cell(place)} {cell(value)}" for place, value in leaves(manifest.params))
        yield f"- {cell(manifest.stage)} (safegene {cell(manifest.version)}): {values}\n"
