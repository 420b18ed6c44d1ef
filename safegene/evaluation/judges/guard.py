"""A guard model as judge: a causal language model on this machine that answers in one of the `formats`.

The model is a local folder, or a Hub id with a revision; safetensors only, no code of the repository is run. It is
asked by its own chat template, or by the format's whole prompt where the format has one; greedily, in batches. An
answer counts only when the model ended it itself within the format's length; ShieldGemma and HarmBench's classifiers
say theirs by the first token alone. A conversation that does not fit the model whole is unscored, since a cut could
hide the harm; so is one during which a score was not a number.

Law: no special token of the tokenizer comes from a prompt or a reply. Its text is broken by a space before the template
sees it, and a conversation in which one is left is unscored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safegene.errors import JudgeError, SafegeneError
from safegene.evaluation.judges.base import Judge, JudgeDecision
from safegene.evaluation.judges.formats import ANSWER_FORMATS, AnswerFormat, Messages, nonce
from safegene.evaluation.judges.phrases import PhraseJudge
from safegene.evaluation.judges.phrases import build as phrase_judge
from safegene.evaluation.judges.weights import model_folder
from safegene.models.device import default_device, threads_for
from safegene.models.generation import end_tokens, greedy_decoding, left_padded
from safegene.models.loading import load_model, load_tokenizer
from safegene.workspace.digest import digest_files, digest_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.params import JudgeParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = ("*.safetensors", "config.json", "generation_config.json", "model.safetensors.index.json")
WORDS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.jinja", "*.model")
LONGEST = 1 << 20  # tokens; a tokenizer without a limit reports a huge number


@dataclass(frozen=True)
class GuardJudge(Judge):
    """Judges by what a guard model answers.

    Attributes:
        model: in evaluation mode, where its weights are.
        tokenizer: the model's own.
        weights: digest of weights and configuration.
        words: digest of tokenizer and chat template.
        format: how it is asked and read.
        phrases: refusal, where the format does not say it.
        batch_size: conversations at a time.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    weights: str
    words: str
    format: AnswerFormat
    phrases: PhraseJudge
    batch_size: int

    @cached_property
    def identity(self) -> str:
        """Digest of weights, tokenizer and template, the dtype computed in, the format's wording and the phrases."""
        files = {"weights": self.weights, "words": self.words, "dtype": str(self.model.dtype)}
        asked = {"wording": self.format.wording, "phrases": self.phrases.identity}
        return digest_json({"kind": "guard", **files, **asked})

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
        """One decision per reply; the longest conversations first, so that too little memory shows at once.

        Raises:
            JudgeError: the chat template cannot take a conversation.
        """
        found: dict[int, JudgeDecision] = {}
        rows: dict[int, list[int]] = {}
        for at, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            row = self._row(prompt, reply)
            if isinstance(row, str):
                found[at] = JudgeDecision("unscored", "unscored", row)
            else:
                rows[at] = row
        order = sorted(rows, key=lambda at: (-len(rows[at]), at))
        with threads_for(self.model.num_parameters()):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for at, answer in zip(batch, self._answers([rows[at] for at in batch]), strict=True):
                    found[at] = self._decide(answer, replies[at])
        return [found[at] for at in range(len(found))]

    def _decide(self, answer: str | None, reply: str) -> JudgeDecision:
        if answer is None:
            return JudgeDecision(
                "unscored", "unscored", "the guard did not end its answer, or its scores are no numbers"
            )
        return self.format.read(answer, reply, self.phrases)

    def _row(self, prompt: str, reply: str) -> list[int] | str:
        """Token ids of the question, or why there are none."""
        if not reply.strip():
            return "empty reply"
        try:
            mark = nonce(self.identity, prompt, reply)
        except UnicodeEncodeError:
            return "half a character in the prompt or reply"
        asked, said = (self._specials.sub(lambda found: f"{found[0][0]} {found[0][1:]}", t) for t in (prompt, reply))
        if self._specials.search(asked) or self._specials.search(said):
            return "a special token in the prompt or reply that cannot be broken up"
        text, template = self._text(self.format.ask(asked, said, mark))
        row = list(self.tokenizer(text, add_special_tokens=not template)["input_ids"])
        positions = int(getattr(self.model.config.get_text_config(), "max_position_embeddings", LONGEST))
        if len(row) + self.format.tokens > min(positions, self.tokenizer.model_max_length, LONGEST):
            return "the conversation does not fit the guard"
        return row

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        known = {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special}
        names = sorted(known | set(self.tokenizer.all_special_tokens), key=lambda name: (-len(name), name))
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def _text(self, messages: Messages) -> tuple[str, bool]:
        """The question as text, and whether the chat template made it, its first special token included."""
        from jinja2 import TemplateError

        if self.format.whole is not None:
            return self.format.whole(messages), False
        more: dict[str, Any] = {"add_generation_prompt": self.format.opens, **self.format.template}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **more)), True
        except (TemplateError, ValueError, TypeError) as error:
            raise JudgeError(f"expected a chat template for a user's and a model's turn, got {error}") from error

    @torch.inference_mode()
    def _answers(self, rows: Sequence[Sequence[int]]) -> list[str | None]:
        """Each answer without its end token; None where the model did not end it, or a score was not a number."""
        from transformers import LogitsProcessorList

        numbers = _Numbers()
        with greedy_decoding(self.model, self.tokenizer, self.format.tokens) as greedy:
            ids, mask = (t.to(self.model.device) for t in left_padded(rows, greedy.pad_token_id))
            watch = LogitsProcessorList([numbers])
            out = self.model.generate(ids, attention_mask=mask, generation_config=greedy, logits_processor=watch)
            ends = set(greedy.eos_token_id)
        answers = [self._answer(row, ends) for row in out[:, ids.shape[1] :].tolist()]
        return [answer if sound else None for answer, sound in zip(answers, numbers.sound, strict=True)]

    def _answer(self, row: list[int], ends: set[int]) -> str | None:
        stop = next((at for at, token in enumerate(row) if token in ends), None)
        if stop is None and not self.format.first_token:
            return None
        # Special tokens stay in sight: an answer with one in it is not the format's.
        return str(self.tokenizer.decode(row[:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False))


class _Numbers:
    """Notes, of every row of a batch, whether all its scores were numbers; changes none."""

    def __init__(self) -> None:
        self.sound: list[bool] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        fine = (~torch.isnan(scores).any(-1)).tolist()
        self.sound = [a and b for a, b in zip(self.sound or [True] * len(fine), fine, strict=True)]
        return scores


def build(params: JudgeParams) -> GuardJudge:
    """Load the guard that ``params.model`` names.

    Raises:
        JudgeError: no model is named, it cannot be loaded, it has no chat template, or nothing ends its answers.
    """
    if not params.model:
        raise JudgeError(
            "expected a model for the guard judge, got none, in evaluate.judge",
            remedy="set evaluate.judge.model to a folder or a Hub id, and revision for the latter",
        )
    folder = model_folder(params.model, params.revision, (*WEIGHTS, *WORDS), cache_folder() / "judges")
    try:
        model = load_model(folder, dtype=params.dtype, device=default_device())
        tokenizer = load_tokenizer(folder)
        ends = end_tokens(model, tokenizer)
    except (SafegeneError, OSError, ValueError) as error:
        raise JudgeError(f"expected a causal language model with a tokenizer in {folder}, got {error}") from error
    form = ANSWER_FORMATS[params.format]
    if not ends or tokenizer.pad_token_id is None:
        raise JudgeError(f"expected a token that ends an answer, got none, in {folder}")
    if form.whole is None and not tokenizer.chat_template:
        raise JudgeError(
            f"expected a chat template for the format {params.format}, got none, in {folder}",
            remedy="take the model's own folder, with chat_template.jinja or tokenizer_config.json",
        )
    weights, words = digest_files(folder, _names(folder, WEIGHTS)), digest_files(folder, _names(folder, WORDS))
    return GuardJudge(model, tokenizer, weights, words, form, phrase_judge(params), params.batch_size)


def _names(folder: Path, patterns: Sequence[str]) -> list[str]:
    found = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    names = (path.relative_to(folder) for path in found)
    return sorted(name.as_posix() for name in names if not name.parts[0].startswith("."))
