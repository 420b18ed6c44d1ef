"""Peak memory of select, calibrate and evaluate on a bf16 model of Llama-3.2-3B's shape, against what headers predict.

Each stage's work runs in a process of its own, on a model with random weights, and its peak resident memory is
measured. The same code that predicts these peaks then says what a 70B needs on 1, 2, 4 and 8 GPUs of 80 GB.

``python -m benchmarks.engine.memory [--small]``; ``--small`` takes a model of 0.1 billion parameters instead.
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import Figure, markdown, measured_at, new_figure, publish, write

COMMAND = "make bench-engine"
HERE = Path(__file__).parent
GOAL_GIB = 12.0
TOLERANCE = 0.10
STEPS, PROMPTS, NEW_TOKENS, SHOTS, RESPONSE_TOKENS = 2, 4, 16, 6, 8
TOP_LAYERS = 4
WORDS = ("how", "do", "i", "make", "a", "table", "with", "two", "short", "legs", "please")
B3: Mapping[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
SMALL: Mapping[str, Any] = {**B3, "vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2048, "head_dim": 32}
B70: Mapping[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TEMPLATE = "{% for m in messages %}<user> {{ m['content'] }} <reply> {% endfor %}"


def build(folder: Path, shape: Mapping[str, Any]) -> None:
    """A Llama of that shape with random bf16 weights, and a tokenizer of a few words with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=1))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.tie_weights()
    block = 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            flat = weight.view(-1)
            for at in range(0, flat.numel(), block.numel()):  # the same numbers again: fast, and memory does not care
                flat[at : at + block.numel()] = block[: flat.numel() - at]
            if name.endswith("norm.weight"):
                flat.fill_(1.0)
    model.save_pretrained(folder, max_shard_size="1GB")
    tokenizer().save_pretrained(folder)


def tokenizer() -> Any:
    """A tokenizer of a few words with a chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(("<s>", "</s>", "<user>", "<reply>", "<unk>", *WORDS))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    made.chat_template = TEMPLATE
    return made


def prompts(count: int) -> list[str]:
    """``count`` different prompts of 8 words."""
    return [
        " ".join(WORDS[(at + step * (1 + at // len(WORDS))) % len(WORDS)] for step in range(8)) for at in range(count)
    ]


def vector(root: Path) -> dict[str, Any]:
    """A random change of rank 8 of every matrix in the first layers, as a compressed safety vector has."""
    import torch

    from safegene.checkpoints.checkpoint import layer_of, open_checkpoint
    from safegene.models.structure import analyse
    from safegene.vectors.linalg import LowRank

    random, found = torch.Generator().manual_seed(1), {}
    for name, matrix in analyse(open_checkpoint(root)).matrices.items():
        layer = layer_of(name)
        if layer is not None and layer < TOP_LAYERS:
            rows, columns = matrix.shape
            up, down = torch.randn(rows, 8, generator=random), torch.randn(8, columns, generator=random)
            found[name] = LowRank(0.02 * up, 0.02 * down)
    return found


def run_select(root: Path) -> None:
    """What stage ``select`` holds in memory: the model, the vector beside it, and the activations of its prompts."""
    from safegene.models.loading import load_model, load_tokenizer
    from safegene.models.templates import encode_chat
    from safegene.repair.selection import activation_shifts

    words, change = load_tokenizer(root), vector(root)
    activation_shifts(load_model(root), [encode_chat(words, one) for one in prompts(SHOTS)], {"vector": change})


def run_calibrate(root: Path) -> None:
    """What stage ``calibrate`` holds: both teachers in turn, the shots, and the fit of coefficients."""
    from safegene.models.loading import load_model, load_tokenizer
    from safegene.models.templates import encode_chat
    from safegene.repair.coefficients import new_coefficients
    from safegene.repair.fitting import fit_coefficients
    from safegene.repair.shots import make_shots
    from safegene.workspace.params import CalibrateParams

    words, change = load_tokenizer(root), vector(root)
    reply = list(range(5, 5 + RESPONSE_TOKENS))
    encoded = [(f"p{at}", encode_chat(words, text), reply) for at, text in enumerate(prompts(SHOTS))]
    teacher = load_model(root, patch=change)
    shots = make_shots(teacher, encoded, kind="safety", response_tokens=RESPONSE_TOKENS)
    del teacher
    model = load_model(root)
    shots += make_shots(model, encoded, kind="benign", response_tokens=RESPONSE_TOKENS)
    params = CalibrateParams(steps=STEPS, measure_every=STEPS, task_weight=0.0, safety_slack=0.0)
    fit_coefficients(params, model, new_coefficients(params, change, 1e7), shots, shots)


def run_evaluate(root: Path) -> None:
    """What stage ``evaluate`` holds: the base, keys and values, and the logits of a batch."""
    from safegene.models.generation import generate
    from safegene.models.loading import load_model, load_tokenizer

    model, words = load_model(root), load_tokenizer(root)
    generate(model, words, prompts(PROMPTS), max_new_tokens=NEW_TOKENS, batch_size=PROMPTS)


STAGES: Mapping[str, Callable[[Path], None]] = {
    "select": run_select,
    "calibrate": run_calibrate,
    "evaluate": run_evaluate,
}


def predicted(root: Path) -> dict[str, int]:
    """The peaks that the headers predict for these runs."""
    from safegene.checkpoints.checkpoint import open_checkpoint
    from safegene.models.memory import size_of_checkpoint, stage_peak_bytes

    factors = sum(sum(change.up.shape) * 8 + sum(change.down.shape) for change in vector(root).values())
    return stage_peak_bytes(
        size_of_checkpoint(open_checkpoint(root)),
        tokens=12,
        keep=RESPONSE_TOKENS,
        rows=2 * SHOTS,
        batch_size=PROMPTS,
        new_tokens=NEW_TOKENS,
        factors=factors,
    )


def measured(stage: str, root: Path) -> int:
    """Peak resident bytes of a stage's process."""
    command = [sys.executable, "-m", "benchmarks.engine.memory", stage, str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def seventy_billion() -> str:
    """What the stages of a 70B need on GPUs of 80 GB, from its shapes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from safegene.models.memory import MICROBATCH_SHARE, placements, size_of_shapes, stage_peak_bytes

    config, gpu = LlamaConfig(**B70), 80 * 10**9
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    size = size_of_shapes(config, {name: tuple(one.shape) for name, one in model.named_parameters()}, 2)
    peaks = stage_peak_bytes(size, factors=10**8, batch_size=32, budget=round(MICROBATCH_SHARE * gpu))
    counts = (1, 2, 4, 8)
    lines = [
        f"A model of {size.parameters / 1e9:.1f} billion parameters in bf16 ({size.weights / 1e9:.0f} GB): GB on each "
        "GPU (and GB of weights that stay in the main memory):",
        "",
        "| stage | " + " | ".join(f"{count} GPU{'s' * (count > 1)}" for count in counts) + " |",
        "|---|" + "---|" * len(counts),
    ]
    for stage in ("degrade", *STAGES):
        cells = [
            f"{one.per_gpu / 1e9:.0f}" + (f" ({one.offloaded / 1e9:.0f})" if one.offloaded else "")
            for one in placements(size, peaks[stage], counts, gpu)
        ]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    streams = peaks["extract"] / 1e9
    return "\n".join([*lines, "", f"`extract` and `merge` stream and need {streams:.1f} GB of main memory, no GPU."])


def figures(root: Path, goal: float) -> list[Figure]:
    """Measured and predicted peaks of every stage."""
    expected, found = predicted(root), list[Figure]()
    for stage in STAGES:
        peak = measured(stage, root)
        off = abs(expected[stage] - peak) / peak
        gib, foretold = round(peak / 2**30, 2), round(expected[stage] / 2**30, 2)
        name = f"{stage}, 3B shape in bf16"
        found += [
            new_figure(f"{name}: peak RSS", gib, "GiB", goal=f"<= {goal:g}", holds=gib <= goal, command=COMMAND),
            new_figure(f"{name}: predicted from headers", foretold, "GiB", command=COMMAND),
            new_figure(
                f"{name}: prediction off by",
                round(off, 3),
                "share",
                goal=f"<= {TOLERANCE:g}",
                holds=off <= TOLERANCE,
                command=COMMAND,
            ),
        ]
    return found


def main(arguments: list[str]) -> None:
    """Run one stage on a folder (``STAGE FOLDER``), or measure all."""
    if len(arguments) == 2 and arguments[0] in STAGES:
        STAGES[arguments[0]](Path(arguments[1]))
        print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return
    small = arguments == ["--small"]
    with tempfile.TemporaryDirectory(prefix="safegene-memory-") as folder:
        build(Path(folder), SMALL if small else B3)
        found = figures(Path(folder), GOAL_GIB)
    table = seventy_billion()
    print(markdown(found), table, sep="\n\n")
    if not small:
        write(HERE / "memory.json", found)
        publish(
            "engine-memory",
            "Memory of select, calibrate and evaluate",
            measured_at(COMMAND),
            f"{markdown(found)}\n\n{table}",
        )


if __name__ == "__main__":
    main(sys.argv[1:])
