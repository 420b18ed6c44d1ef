"""The chat template of a model: a conversation as the text that the model reads.

A template is code from outside. It is rendered in a process with bounds on time and memory
(`safegene.models.template_child`) before transformers renders it here. Laws (tests state them): the text holds the
user's words once and unchanged, and what is around them does not depend on them; both renderings agree.
"""

import atexit
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from safegene.checkpoints.chat_template import ChatFiles, chat_template_of
from safegene.errors import CheckpointError
from safegene.models import template_child
from safegene.models.loading import load_tokenizer
from safegene.text import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Mapping[str, str]]
TRIES = 3
SECONDS = 10  # of CPU time, for the texts of one call
MARK = "qvx one mark kjw"  # words in place of a prompt
REMEDY = "use the family's chat template, or the one that the fine-tune was trained with without what changes the words"


def load_chat_tokenizer(files: ChatFiles) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, with the template of ``files.template``, also where transformers reads none.

    Raises:
        CheckpointError: there is no tokenizer, or no template.
        UnsafeCheckpoint: a file is too large, or names code.
    """
    tokenizer, template = load_tokenizer(files.tokenizer), chat_template_of(files.template)
    if template is None:
        raise CheckpointError(
            f"expected a chat template in chat_template.jinja or tokenizer_config.json, got none, in {files.template}",
            remedy="fetch the checkpoint again: a checkpoint without a chat template is refused there",
        )
    tokenizer.chat_template = template
    return tokenizer


def encode_chats(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt as one user turn in the chat template, up to the start of the assistant's reply.

    Raises:
        CheckpointError: the template is malformed, refuses such a turn, changes the prompt, takes too much time or
            memory, or depends on what the prompt says.
    """
    texts = chat_texts(tokenizer, prompts)
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def encode_chat(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """`encode_chats` of one prompt."""
    return encode_chats(tokenizer, [prompt])[0]


def chat_texts(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], *, own: bool = False) -> list[str]:
    """Each prompt as the text that the model reads.

    Args:
        tokenizer: with a chat template.
        prompts: user turns.
        own: whether the template is not the family's; then it must depend neither on chance nor on the clock.

    Raises:
        CheckpointError: as `encode_chats`.
    """
    template, variables = str(tokenizer.get_chat_template()), dict(tokenizer.special_tokens_map)
    turns = [_turn(text) for text in (MARK, *prompts)]
    for _ in range(TRIES if template_child.CLOCK in template else 1):  # a date may pass between two renderings
        frame, *texts = _CHILD.render(template, variables, turns, own=own)
        other = _first_difference(tokenizer, prompts, texts)
        if other is None:
            break
    else:
        raise CheckpointError(f"expected one text of the chat template, got {other}", remedy=REMEDY)
    if frame.count(MARK) != 1:
        raise _changed("once", f"them {frame.count(MARK)} times", frame)
    before, after = frame.split(MARK)
    for prompt, text in zip(prompts, texts, strict=True):
        if text not in (before + prompt + after, before + prompt.strip() + after):
            raise _changed("unchanged between the same words", f"another text for {quoted(prompt)}", text)
    return texts


def _first_difference(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], texts: Sequence[str]) -> str | None:
    """The first text that transformers renders otherwise, beside ours; None where there is none."""
    for prompt, text in zip(prompts, texts, strict=True):
        rendered: Any = tokenizer.apply_chat_template(_turn(prompt), add_generation_prompt=True, tokenize=False)
        if rendered != text:
            return f"{quoted(rendered)} and {quoted(text)}"
    return None


def _changed(how: str, got: str, text: str) -> CheckpointError:
    return CheckpointError(
        f"expected a chat template that repeats the user's words {how}, got {got}: {quoted(text)}", remedy=REMEDY
    )


def _turn(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@dataclass
class _Child:
    """The process that renders; it is started when it is first needed, and again after one was ended by its bounds."""

    process: "subprocess.Popen[str] | None" = None
    lock: Lock = field(default_factory=Lock)

    def render(
        self, template: str, variables: Mapping[str, Any], conversations: Sequence[Conversation], *, own: bool
    ) -> list[str]:
        """One text per conversation.

        Raises:
            CheckpointError: the template fails, or takes too much time or memory.
        """
        request = {"template": template, "variables": variables, "conversations": conversations, "own": own}
        request["seconds"] = SECONDS
        with self.lock:
            answer = self._ask(json.dumps(request))
        error = "no text" if answer is None else answer.get("error", "")
        texts = [] if answer is None else answer.get("texts", [])
        if answer is None:
            error = f"one that needs more than {SECONDS} s or {template_child.BYTES >> 20} MiB"
        elif not error and not all(text.strip() for text in texts):
            error = "an empty text"
        if error:
            raise CheckpointError(
                f"expected a chat template that writes one user turn, got {quoted(error)[1:-1]}",
                remedy="use the chat template that the fine-tune was trained with",
            )
        return list(texts)

    def _ask(self, line: str) -> dict[str, Any] | None:
        """The answer; None where the process ended."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline() or "null")
        except (OSError, ValueError):
            answer = {}
        if not answer:
            self.end()
        return answer or None

    def _running(self) -> "subprocess.Popen[str]":
        if self.process is None or self.process.poll() is not None:
            words = [sys.executable, "-I", "-X", "utf8", str(Path(template_child.__file__))]
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            self.process = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=null, env={}, encoding="utf-8", bufsize=1
            )
        return self.process

    def end(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


_CHILD = _Child()
atexit.register(_CHILD.end)
