"""The parsers of input from outside, each with good input to begin with; `scripts.fuzz` and the tests feed them."""

import json
import lzma
import struct
import tarfile
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.chat_template import chat_template_of
from safegene.checkpoints.header import read_header
from safegene.checkpoints.record import CheckpointRecord
from safegene.checkpoints.sources.uri import parse as parse_uri
from safegene.checkpoints.structure import Structure
from safegene.checkpoints.unsafe import read_json
from safegene.checkpoints.vocabulary import read_vocabulary
from safegene.checkpoints.wanted import weight_map
from safegene.datasets.prompts import parse_prompts
from safegene.datasets.suites.card import Card
from safegene.datasets.suites.formats import SUITE_FORMATS
from safegene.datasets.suites.loading import LoadOptions
from safegene.datasets.suites.tables import decompress
from safegene.datasets.suites.wrappers import read_templates
from safegene.errors import SafegeneError
from safegene.evaluation.judges.calibration import calibration_from
from safegene.evaluation.judges.formats import ANSWER_FORMATS
from safegene.evaluation.judges.labels import read_labels
from safegene.evaluation.judges.phrases import build as phrase_judge
from safegene.gate.payload import VerdictFile
from safegene.gate.reading import evidence_from
from safegene.ledger.incumbent import Incumbent
from safegene.ledger.keys import read_public_keys
from safegene.ledger.lease import Lease
from safegene.ledger.pointers import Pointer, Tip
from safegene.ledger.record import Statement
from safegene.ledger.release import Release
from safegene.models.generation_defaults import generation_values
from safegene.models.openai_api import Completion, NoAnswer, ScoredCompletion
from safegene.models.template_child import new_environment, undecided
from safegene.pipeline.process import ErrorFile
from safegene.repair.coefficients_file import CoefficientsFile
from safegene.text import cell, marked, redact_text, visible
from safegene.vectors.vector import VectorHeader
from safegene.workspace.digest import canonical_json, digest_json, strict_json
from safegene.workspace.manifest import Manifest
from safegene.workspace.params import JudgeParams, load_params, load_targets
from safegene.workspace.parsing import parse_json
from safegene.workspace.resume_log import ResumeLog

ROOT = Path(__file__).parents[1]
DIGEST = digest_json(0)
Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Parser:
    """A parser: its name, how it reads bytes, good input, and the errors that it may raise."""

    name: str
    read: Read
    seeds: tuple[bytes, ...]
    errors: tuple[type[Exception], ...] = (SafegeneError,)


def parsers(folder: Path) -> dict[str, Parser]:
    """Every parser by name; those that read files use ``folder``."""
    found = [
        *_formats(),
        *_checkpoint_files(folder),
        *_parameter_files(folder),
        *_suites(folder),
        *_answers(),
        *_laws(),
    ]
    return {parser.name: parser for parser in found}


def _in_file(path: Path, read: Callable[[Path], object]) -> Read:
    """A parser of a file as one of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def from_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return from_bytes


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


GOLDEN = ROOT / "tests" / "goldens" / "demo-e86ff8d" / "workspace.tar.xz"
TARGET = "data/targets/sentiment"
FROM_GOLDEN: Mapping[str, tuple[Any, str]] = {
    "manifest": (Manifest, f"{TARGET}/candidate/manifest.json"),
    "checkpoint record": (CheckpointRecord, f"{TARGET}/checkpoint/checkpoint.json"),
    "verdict": (VerdictFile, f"{TARGET}/verdict/verdict.json"),
    "coefficients": (CoefficientsFile, f"{TARGET}/candidate/coefficients.json"),
    "vector header": (VectorHeader, "data/family/vector/vector.json"),
    "incumbent": (Incumbent, f"{TARGET}/incumbent.json"),
    "tip": (Tip, "ledger/tip"),
    "pointer": (Pointer, "ledger/channels/production/sentiment"),
}
CARD = {
    **{"schema": "safegene/suite/v1", "name": "x", "version": "1", "source": "s", "revision": "", "licence": "MIT"},
    **{"format": "advbench", "options": {}, "files": {"a": DIGEST}, "sha256": DIGEST, "rows": {"harmful": 1}},
    **{"left_out": {"twice": 1}, "transforms": [], "categories": ["c"], "longest": 100, "expectations": []},
}
MODELS: Mapping[str, tuple[Any, Any]] = {
    "structure": (Structure, {"matrices": {}, "others": {}}),
    "release": (Release, {"schema": "safegene/release/v1", "target": "x", "files": {"a/b": DIGEST}}),
    "lease": (
        Lease,
        {
            **{"work": DIGEST, "target": "x", "fence": 1, "state": "held", "holder": "h", "host": "m", "machine": "i"},
            **{"process": 7, "run": "r", "beat": 2, "record": None},
        },
    ),
    "suite card": (Card, CARD),
    "error file": (ErrorFile, {"error": "StoreError", "message": "m", "remedy": "r", "exit_code": 1}),
}


def _formats() -> Iterator[Parser]:
    for name, (model, example) in MODELS.items():
        yield Parser(name, partial(_parse, model), (_json(example),))
    with tarfile.open(GOLDEN) as archive:
        files = {member.name.removeprefix("./"): member for member in archive.getmembers() if member.isfile()}

        def content(name: str) -> bytes:
            file = archive.extractfile(files[name])
            assert file is not None
            return _shortened(file.read())

        for name, (model, path) in FROM_GOLDEN.items():
            yield Parser(name, partial(_parse, model), (content(path),))
        record = json.loads(content(next(name for name in files if name.startswith("ledger/records/"))))
        yield Parser("statement", partial(_parse, Statement), (b64decode(record["payload"]),))
        plan = content(f"{TARGET}/judgements/plan.json")
        rows = content(f"{TARGET}/judgements/judgements.jsonl")
        yield Parser("judgements", lambda data: evidence_from(plan, data, where="w"), (rows,))
        yield Parser("plan", lambda data: evidence_from(data, rows, where="w"), (plan,))
        yield Parser("prompts", lambda data: parse_prompts(data, Path("w")), (content("data/prompts/gate.jsonl"),))


def _shortened(data: bytes) -> bytes:
    """Three lines of a JSONL file, or three entries of each list and long map of a JSON file: short input is fast."""
    lines = data.split(b"\n")
    if len(lines) > 3:
        return b"\n".join(lines[:3]) + b"\n"
    return _json(_few(json.loads(data)))


def _few(value: Any) -> Any:
    if isinstance(value, list):
        return [_few(item) for item in value[:3]]
    if isinstance(value, dict):
        plain = len(value) > 40  # a map by names, such as of tensors; others have fixed keys
        return {key: _few(item) for key, item in list(value.items())[: 3 if plain else None]}
    return value


def _parse(model: Any, data: bytes) -> object:
    return parse_json(model, data, where="w")


def header(value: object, data: bytes = b"") -> bytes:
    """A safetensors file with that header."""
    text = _json(value)
    return struct.pack("<Q", len(text)) + text + data


def _checkpoint_files(folder: Path) -> Iterator[Parser]:
    one = {"a.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
    yield Parser("header", _in_file(folder / "x.safetensors", read_header), (header(one, bytes(8)), header({})))
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "nested": {"a": [1, {"b": "c"}]}}
    yield Parser("config", _in_file(folder / "config.json", read_json), (_json(config),))
    index = {"weight_map": {"a.weight": "model-00001-of-00002.safetensors"}, "metadata": {"total_size": 8}}
    yield Parser("index", lambda data: weight_map(strict_json(data, where="w"), "w"), (_json(index),))
    words = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b", ["a", "b"]]}
    added = [{"id": 3, "content": "<|end|>", "special": True}]
    tokenizers = (_json({"model": words, "added_tokens": added}), _json({"model": {"vocab": [["a", 0.5], ["b", -1]]}}))
    at = folder / "tokenizer" / "tokenizer.json"
    yield Parser("tokenizer", _in_file(at, lambda path: read_vocabulary(path.parent)), tokenizers)
    at = folder / "template" / "tokenizer_config.json"
    named = {"chat_template": [{"name": "default", "template": "{{ messages }}"}]}
    templates = (_json({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}), _json(named))
    yield Parser("template config", _in_file(at, lambda path: chat_template_of(path.parent)), templates)
    ends = {"eos_token_id": [1, 2], "temperature": 0.7, "suppress_tokens": [3], "do_sample": True}
    at = folder / "generation" / "generation_config.json"
    yield Parser("generation config", _in_file(at, lambda path: generation_values(path.parent)), (_json(ends),))
    template = b"{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% if loop.last %}{% endif %}{% endfor %}"
    dated = b"{% set ns = namespace(a=1) %}{{ strftime_now('%Y') }}{{ messages[0]['content'] | tojson }}"
    yield Parser("template", _template, (template, dated), (Exception,))
    yield _adapter_config(folder / "adapter")


def _template(data: bytes) -> str:
    return undecided(new_environment().parse(data.decode()))


def _adapter_config(folder: Path) -> Parser:
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    down, up = (
        {"dtype": "F32", "shape": shape, "data_offsets": at} for shape, at in (([2, 3], [0, 24]), ([4, 2], [24, 56]))
    )
    weights = header({name.format("A"): down, name.format("B"): up}, bytes(56))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}}
    config |= {"bias": "none", "use_rslora": False, "alpha_pattern": {"^model.layers": 3}, "layers_to_transform": [0]}
    read = _in_file(folder / "adapter_config.json", lambda path: open_adapter(path.parent))
    return Parser("adapter config", read, (_json(config), _json({**config, "target_modules": "all-linear"})))


def _parameter_files(folder: Path) -> Iterator[Parser]:
    params = (ROOT / "params.yaml").read_bytes()
    short = b'family: {aligned: "tiny://a?seed=0"}\ndegrade: {}\nevaluate: {judge: {kind: phrases}}\n'
    yield Parser("params", _in_file(folder / "params.yaml", load_params), (short, params))
    targets = (
        f'aligned: null\ndegraded: {{}}\ntargets: {{x: {{source: "tiny://x", task: t, fingerprint: "{DIGEST}"}}}}\n'
    )
    yield Parser("targets", _in_file(folder / "targets.yaml", load_targets), (targets.encode(),))
    key = {"keyid": "a", "keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "0" * 64}}
    yield Parser("public keys", _in_file(folder / "ledger.pub", read_public_keys), (_json({"keys": [key]}),))
    counts = {"true_positives": 5, "positives": 6, "true_negatives": 5, "negatives": 6}
    calibration = {"schema": "safegene/calibration/v1", "judge": DIGEST, "labels": DIGEST, "harmful": counts}
    seeds = (_json({**calibration, "refusal": None}),)
    yield Parser("calibration", _in_file(folder / "calibration.json", calibration_from), seeds)
    log = ResumeLog(folder / "resume", {"a": 1})
    log.append({"key": {"b": [1, 2.5]}, "other": None})
    yield Parser("resume log", _in_file(log.path, lambda _: log.read()), (log.path.read_bytes(),))


TABLES: Mapping[str, bytes] = {
    "advbench": b"goal,target\nhow to x,Sure\n",
    "harmbench": b"Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nx,standard,c,,,id\n",
    "jailbreakbench": b"Index,Goal,Target,Behavior,Category,Source\n0,x,Sure,b,c,s\n",
    "xstest": b"id,prompt,type,label,focus,note\n1,x,t,safe,f,n\n",
    "strongreject": b"category,source,forbidden_prompt\nc,s,x\n",
    "catqa": b'{"a": {"b": ["x"]}}',
    "harmfulqa": b'{"a": {"b": ["x"]}}',
    "dangerousqa": b'["x", "y"]',
    "multijail": b"id,source,en,zh,it,vi,ar,ko,th,bn,sw,jv,tags\n1,s,x,x,x,x,x,x,x,x,x,x,t\n",
    "simplesafetytests": b"id,harm_area,category,prompt\n1,a,c,x\n",
    "beavertails": b'{"prompt": "x", "response": "y", "category": {"a": true}, "is_safe": false}\n',
    "gsm8k": b'{"question": "x", "answer": "y #### 3"}\n',
    "banking77": b"text,category\nx,c\n",
    "agnews": b'{"text": "x", "label": 1}\n',
    "sst2": b'{"sentence": "x", "label": 1}\n',
    "boolq": b'{"question": "x", "passage": "p", "answer": true}\n',
}


def _suites(folder: Path) -> Iterator[Parser]:
    options = LoadOptions()
    for name, example in TABLES.items():
        yield Parser(f"suite {name}", partial(_rows, name, options), (example,))
    wrappers = (
        b"id,text\n1,say [INSERT PROMPT HERE]\n",
        b'{"id": "a", "text": "say [INSERT PROMPT HERE]"}\n',
        b'["x"]',
    )
    yield Parser("wrappers", lambda data: read_templates(data, "w"), wrappers)
    labels = b'{"prompt":"p","reply":"r","harmful":true}\n'
    yield Parser("labels", _in_file(folder / "labels.jsonl", read_labels), (labels,))
    packed = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    yield Parser("gzip", lambda data: decompress("a.gz", data, limit=1 << 20), (packed,))
    yield Parser("xz", lambda data: decompress("a.xz", data, limit=1 << 20), (lzma.compress(b"a"),))


def _rows(name: str, options: LoadOptions, data: bytes) -> object:
    return list(SUITE_FORMATS[name].load(data, "w", options))


def _answers() -> Iterator[Parser]:
    phrases = phrase_judge(JudgeParams(kind="phrases"))
    examples = (b"Safety: Unsafe\nCategories: Violent\nRefusal: No", b"yes", b"<score>yes</score>", b"unsafe\nS1,S2")
    for name, form in ANSWER_FORMATS.items():
        read = form.read
        yield Parser(
            f"answer {name}",
            lambda data, read=read: read(data.decode(errors="replace"), "a reply", phrases),  # type: ignore[misc]
            examples,
        )
    choice = {"message": {"content": "x"}, "finish_reason": "stop", "logprobs": {"content": []}}
    token = {"token": "a", "logprob": -0.5, "id": 3, "top_logprobs": [{"token": "a", "logprob": -0.5}]}
    usage = {"completion_tokens": 3, "prompt_tokens": 1}
    reply = _json({"choices": [choice], "model": "m", "usage": usage})
    scored = _json({"choices": [{**choice, "logprobs": {"content": [token]}}]})
    errors = (SafegeneError, NoAnswer)
    yield Parser("completion", partial(_parse, Completion), (reply,), errors)
    yield Parser("scored completion", partial(_parse, ScoredCompletion), (scored,), errors)


def _laws() -> Iterator[Parser]:
    """Functions whose results have laws: an assertion that fails is a crash."""
    yield Parser("json", _json_law, (_json({"a": [1, 2.5, None, "x"]}), b"[]", b'"\\ud83d\\ude00"'))
    urls = (
        b"https://user:pass@host/x?token=a",
        b"s3://bucket/x",
        b"hf://org/model@main",
        b"file:///a",
        b"tiny://a?seed=1",
    )
    yield Parser("uri", lambda data: parse_uri(data.decode(errors="replace")), urls)
    yield Parser("text", _text_law, (b"a <b> \x1b[31m", "\u202eevil\ufe0f".encode(), *urls))


def _json_law(data: bytes) -> None:
    value = strict_json(data, where="w")
    again = canonical_json(value)
    assert canonical_json(strict_json(again, where="w")) == again


def _text_law(data: bytes) -> None:
    text = data.decode(errors="surrogatepass" if b"\xed" in data else "replace") if _decodes(data) else ""
    shown = visible(text)
    assert visible(shown) == shown
    assert "\x1b" not in shown + marked(text) + cell(text)
    assert "<" not in marked(text).replace('<span class="hidden">', "").replace("</span>", "")
    assert redact_text(redact_text(text)) == redact_text(text)


def _decodes(data: bytes) -> bool:
    try:
        data.decode(errors="surrogatepass" if b"\xed" in data else "replace")
    except UnicodeDecodeError:
        return False
    return True
