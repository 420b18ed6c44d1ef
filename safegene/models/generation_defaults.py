"""The generation defaults of a checkpoint, compared with the family's.

safegene decodes greedily and takes only the end tokens from a checkpoint. What is served may follow its
``generation_config.json``. So a default that forces or suppresses tokens, and an end token that the family does not
have, are refused; another sampling is declared.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegene.checkpoints.unsafe import read_json
from safegene.errors import CheckpointError, ShapeMismatch
from safegene.models.tokenizer import ResolvedTokenizer
from safegene.text import quoted, visible

FILE = "generation_config.json"
SAMPLING = frozenset(
    {
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "epsilon_cutoff",
        "eta_cutoff",
        "length_penalty",
        "min_p",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "renormalize_logits",
        "repetition_penalty",
        "temperature",
        "top_h",
        "top_k",
        "top_p",
        "typical_p",
    }
)
STEERING = frozenset(
    {
        "bad_words_ids",
        "begin_suppress_tokens",
        "constraints",
        "custom_generate",
        "decoder_start_token_id",
        "dola_layers",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "exponential_decay_length_penalty",
        "force_words_ids",
        "forced_bos_token_id",
        "forced_decoder_ids",
        "forced_eos_token_id",
        "guidance_scale",
        "min_length",
        "min_new_tokens",
        "no_repeat_ngram_size",
        "penalty_alpha",
        "sequence_bias",
        "stop_strings",
        "suppress_tokens",
        "token_healing",
        "watermarking_config",
    }
)
_NEUTRAL: Mapping[str, Any] = {
    "begin_suppress_tokens": [],
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "length_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "renormalize_logits": False,
    "repetition_penalty": 1.0,
    "suppress_tokens": [],
    "temperature": 1.0,
    "token_healing": False,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
}


def generation_values(root: Path) -> dict[str, Any]:
    """The defaults that steer or sample, and ``eos_token_id`` as a list; without what changes nothing.

    Old checkpoints, without a ``generation_config.json``, have them in ``config.json``.

    Raises:
        CheckpointError: an end token is no whole number, or transformers does not read the file.
        FormatError: a file is malformed.
    """
    if (root / FILE).is_file():
        values = read_json(root / FILE)
    else:
        config = read_json(root / "config.json")
        nested: dict[str, Any] = next(
            (config[key] for key in ("text_config", "decoder") if isinstance(config.get(key), dict)), {}
        )
        values = {**nested, **config}
    kept = {key: values[key] for key in sorted(SAMPLING | STEERING) if values.get(key) is not None}
    found = {key: value for key, value in kept.items() if value != _NEUTRAL.get(key)}
    ends = values.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(index) is int and index >= 0 for index in listed):
        raise CheckpointError(
            f"expected ids of end tokens, got eos_token_id {quoted(ends)}, in {root / FILE}",
            remedy=f"correct eos_token_id in {FILE}",
        )
    if (root / FILE).is_file():
        _require_loadable(values, root / FILE)
    return found | {"eos_token_id": sorted(set(listed))}


def _require_loadable(values: Mapping[str, Any], path: Path) -> None:
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(dict(values)).validate()
    except Exception as error:  # values of a wrong type fail in many ways
        shown = visible(" ".join(f"{type(error).__name__}: {error}".split()), characters=200)
        raise CheckpointError(
            f"expected generation defaults that transformers reads, got {shown}, in {path}",
            remedy=f"correct {FILE}, or remove it",
        ) from None


def require_same_generation(
    own: tuple[Mapping[str, Any], ResolvedTokenizer], family: tuple[Mapping[str, Any], ResolvedTokenizer], where: str
) -> tuple[str, ...]:
    """Compare a target's generation defaults with the family's.

    Args:
        own: the target's `generation_values` and tokenizer.
        family: the family's.
        where: the target, for messages.

    Returns:
        Sampling that differs, one sentence each.

    Raises:
        ShapeMismatch: a value that forces or suppresses tokens, or the end tokens; names both values.
    """
    values, expected = own[0], family[0]
    for key in sorted(STEERING & values.keys()):
        if values[key] != expected.get(key):
            raise ShapeMismatch(
                f"expected the family's {key} {quoted(expected.get(key))}, got {quoted(values[key])}, in {FILE} of "
                f"{where}",
                remedy=f"remove {key} from {FILE} (or config.json): replies are measured without it",
            )
    _require_ends(own, family, where)
    different = sorted(key for key in SAMPLING if values.get(key) != expected.get(key))
    return tuple(f"{key} {quoted(values.get(key))}, the family's {quoted(expected.get(key))}" for key in different)


def _require_ends(
    own: tuple[Mapping[str, Any], ResolvedTokenizer], family: tuple[Mapping[str, Any], ResolvedTokenizer], where: str
) -> None:
    """Check that replies end where the family's do, or with a special token that the target added."""
    (values, tokenizer), (theirs, reference) = own, family
    ends, expected = set(values["eos_token_id"]), {*theirs["eos_token_id"], reference.end} - {None}
    own_end = set() if tokenizer.end is None else {tokenizer.end}
    added = tokenizer.special - set(reference.vocabulary.values())
    if other := sorted((ends | own_end) - expected - added):
        words = [token for token, index in tokenizer.vocabulary.items() if index in other[:3]]
        raise ShapeMismatch(
            f"expected replies to end with the family's end tokens {sorted(expected)} or with special tokens that were "
            f"added, got {quoted(words)} (ids {other[:3]}), in {where}",
            remedy=f"correct eos_token in tokenizer_config.json and eos_token_id in {FILE}",
        )
    if ends and not own_end <= ends and (ends, tokenizer.end) != (set(theirs["eos_token_id"]), reference.end):
        raise ShapeMismatch(
            f"expected the tokenizer's end token {tokenizer.end} among eos_token_id, got {sorted(ends)}, in {FILE} of "
            f"{where}: some programs would end replies there, others not",
            remedy=f"add the tokenizer's end token to eos_token_id in {FILE}",
        )
