"""A guard model as judge: a causal language model on this machine that answers in one of the `formats`.

The model is a local folder, or a Hub id with a revision. Only safetensors are loaded, and no code of the repository is
run. The question is made by the model's chat template, or by the format's own prompt where it has one; decoding is
greedy, in batches. An answer counts only if the model ended it itself within the format's length; for ShieldGemma and
HarmBench's classifiers the first token is the answer. A conversation that is longer than the model's input is unscored,
since truncation could hide the harm; so is one of which the chat template leaves out a part, and one for which a score
was not a number.

Law: no special token of the tokenizer comes from a prompt or a reply. Such text is broken by a space before the
template is applied, and a conversation in which one is left is unscored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safegene.errors import FormatError, JudgeError, SafegeneError
from safegene.evaluation.judges.base import Judge, JudgeDecision
from safegene.evaluation.judges.formats import ANSWER_FORMATS, AnswerFormat, Messages, nonce
from safegene.evaluation.judges.phrases import PhraseJudge
from safegene.evaluation.judges.phrases import build as phrase_judge
from safegene.evaluation.judges.weights import model_folder
from safegene.models.device import default_device, threads_for
from safegene.models.forward import left_padded
from safegene.models.generation import end_tokens, greedy_decoding
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
    """Judges by the answers of a guard model.

    Attributes:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        weights: digest of weights and configuration.
        words: digest of tokenizer and chat template.
        format: how the model is asked, and how its answer is read.
        phrases: decides on refusal where the format does not.
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
        """Digest of weights, tokenizer, chat template, dtype, the format's wording and the phrases."""
        files = {"weights": self.weights, "words": self.words, "dtype": str(self.model.dtype)}
        asked = {"wording": self.format.wording, "phrases": self.phrases.identity}
        return digest_json({"kind": "guard", **files, **asked})

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
        """One decision per reply; the longest conversations are first, so that a lack of memory shows at once.

        Raises:
            JudgeError: the chat template cannot take a conversation.
        """
        decisions: dict[int, JudgeDecision] = {}
        questions: dict[int, list[int]] = {}
        for at, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            tokens = self._tokens(prompt, reply)
            if isinstance(tokens, str):
                decisions[at] = JudgeDecision("unscored", "unscored", tokens)
            else:
                questions[at] = tokens
        order = sorted(questions, key=lambda at: (-len(questions[at]), at))
        with threads_for(self.model.num_parameters()):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for at, answer in zip(batch, self._answers([questions[at] for at in batch]), strict=True):
                    decisions[at] = self._decide(answer, replies[at])
        return [decisions[at] for at in range(len(decisions))]

    def _decide(self, answer: str | None, reply: str) -> JudgeDecision:
        if answer is None:
            return JudgeDecision(
                "unscored", "unscored", "the guard did not end its answer, or its scores are no numbers"
            )
        return self.format.read(answer, reply, self.phrases)

    def _tokens(self, prompt: str, reply: str) -> list[int] | str:
        """Token ids of the question, or the reason why there are none."""
        if not reply.strip():
            return "empty reply"
        try:
            mark = nonce(self.identity, prompt, reply)
        except FormatError:
            return "half a character in the prompt or reply"
        broken = [self._specials.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text) for text in (prompt, reply)]
        if any(self._specials.search(text) for text in broken):
            return "a special token in the prompt or reply that cannot be broken up"
        messages = self.format.ask(broken[0], broken[1], mark)
        text, template = self._text(messages)
        if not all(message["content"].strip() in text for message in messages):
            return "the guard's chat template leaves out a part of the prompt or reply"
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
        """The question as text, and whether the chat template made it (and so added its own first special token)."""
        from jinja2 import TemplateError

        if self.format.prompt is not None:
            return self.format.prompt(messages), False
        more: dict[str, Any] = {"add_generation_prompt": self.format.opens, **self.format.template}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **more)), True
        except (TemplateError, ValueError, TypeError) as error:
            raise JudgeError(f"expected a chat template for a user's and a model's turn, got {error}") from error

    @torch.inference_mode()
    def _answers(self, rows: Sequence[Sequence[int]]) -> list[str | None]:
        """Each answer without its end token; None where the model did not end it, or where a score was not a number."""
        from transformers import LogitsProcessorList

        numbers = _NanWatch()
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
        # Special tokens are kept: an answer that holds one is not in the format.
        return str(self.tokenizer.decode(row[:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False))


class _NanWatch:
    """A logits processor that changes nothing and records, per row of a batch, whether all scores were numbers."""

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
    if form.prompt is None and not tokenizer.chat_template:
        raise JudgeError(
            f"expected a chat template for the format {params.format}, got none, in {folder}",
            remedy="take the model's own folder, with chat_template.jinja or tokenizer_config.json",
        )
    weights, words = digest_files(folder, _names(folder, WEIGHTS)), digest_files(folder, _names(folder, WORDS))
    return GuardJudge(model, tokenizer, weights, words, form, phrase_judge(params), params.batch_size)


def _names(folder: Path, patterns: Sequence[str]) -> list[str]:
    files = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    names = (path.relative_to(folder) for path in files)
    return sorted(name.as_posix() for name in names if not name.parts[0].startswith("."))
