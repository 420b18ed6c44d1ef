"""Small tokenizers of the kinds that families have, saved as transformers saves them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["how do i draw a kite ?", "the quick brown fox jumps over the lazy dog", "na\u00efve 1 2 3, four; five."] * 20
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KINDS = {"qwen2": "Qwen2Tokenizer", "llama": "PreTrainedTokenizerFast", "mistral": "LlamaTokenizer"}


def save_tokenizer(folder: Path, kind: str) -> Path:
    """A trained tokenizer.

    Args:
        folder: to write.
        kind: ``qwen2`` and ``llama`` have byte-level BPE, as Qwen and Llama 3; ``mistral`` and ``llama-2`` have the
            BPE of SentencePiece, as Mistral and Llama 2.
    """
    folder.mkdir(parents=True)
    pieces = kind in ("mistral", "llama-2")
    (_pieces() if pieces else _bytes(kind == "qwen2")).save(str(folder / "tokenizer.json"))
    own: dict[str, Any] = {"tokenizer_class": KINDS.get(kind, "LlamaTokenizer"), "clean_up_tokenization_spaces": False}
    if pieces:
        own |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True, "add_bos_token": True}
    else:
        own |= {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "config.json").write_text(json.dumps({"model_type": kind.removesuffix("-2")}))
    return folder


def _bytes(nfc: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def _pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=700, special_tokens=first))
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the bytes are ordinary tokens
    return Tokenizer.from_str(json.dumps(state))
