"""``safegene serve-plan``: the vLLM and SGLang commands that serve a target's models to ``evaluate``.

Arms that share a full checkpoint, tokenizer and chat template share a server: one is the checkpoint itself, the others
are LoRA modules on it. An adapter that the server does not take (rank above vLLM's largest, expert weights) is served
merged, by a server of its own. The options are those of vLLM 0.26 and SGLang 0.5; both ignore the checkpoint's own
sampling settings, so that only ``temperature: 0`` of the request counts.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safegene.checkpoints.chat_template import ChatFiles, chat_template_of
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import SERVED_RANKS, served_rank
from safegene.checkpoints.export.base_model import base_model_name
from safegene.checkpoints.record import read_record
from safegene.checkpoints.unsafe import read_json
from safegene.checkpoints.wanted import ADAPTER_CONFIG
from safegene.errors import CheckpointError
from safegene.evaluation.shared_bases import EvaluatedModel
from safegene.gate import Arm
from safegene.pipeline.stages.evaluate import evaluated_models
from safegene.workspace.layout import Workspace
from safegene.workspace.server_params import ServerParams

Program = Literal["vllm", "sglang"]
PROGRAMS: tuple[Program, ...] = ("vllm", "sglang")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class PlannedServer:
    """One server.

    Attributes:
        model: folder of the full checkpoint, or its id on the Hub.
        revision: of the id on the Hub.
        name: under which the full checkpoint is served.
        dtype: of its weights.
        modules: name -> folder of a LoRA adapter on it.
        rank: the largest of the adapters'.
        arms: arm -> the name of its module; empty for the full checkpoint itself.
        tokenizer: folder of the tokenizer, where it is another than the checkpoint's.
        template: file of the chat template, where it is another than the tokenizer's.
    """

    model: str
    revision: str | None
    name: str
    dtype: str
    modules: Mapping[str, str]
    rank: int
    arms: Mapping[Arm, str]
    tokenizer: str | None
    template: str | None

    def command(self, program: Program, host: str, port: int) -> list[str]:
        """The words of the command that starts it."""
        return self._vllm(host, port) if program == "vllm" else self._sglang(host, port)

    def names(self, program: Program) -> dict[Arm, str]:
        """Arm -> the model's name in a request; SGLang names an adapter with its base."""
        prefix = "" if program == "vllm" else f"{self.name}:"
        return {arm: f"{prefix}{module}" if module else self.name for arm, module in self.arms.items()}

    def _vllm(self, host: str, port: int) -> list[str]:
        words = ["vllm", "serve", self.model, "--served-model-name", self.name, "--host", host, "--port", str(port)]
        words += ["--dtype", self.dtype, "--generation-config", "vllm", "--return-tokens-as-token-ids"]
        words += self._files("--tokenizer")
        if self.modules:
            words += ["--enable-lora", "--max-lora-rank", str(served_rank(self.rank)), "--max-loras"]
            words += [str(len(self.modules)), "--lora-modules", *self._named()]
        return words

    def _sglang(self, host: str, port: int) -> list[str]:
        words = ["python", "-m", "sglang.launch_server", "--model-path", self.model, "--served-model-name", self.name]
        words += ["--host", host, "--port", str(port), "--dtype", self.dtype, "--sampling-defaults", "openai"]
        words += self._files("--tokenizer-path")
        if self.modules:
            words += ["--enable-lora", "--max-lora-rank", str(self.rank), "--max-loras-per-batch"]
            words += [str(len(self.modules) + 1), "--lora-paths", *self._named()]  # the base itself takes a place
        return words

    def _files(self, tokenizer: str) -> list[str]:
        words = ["--revision", self.revision] if self.revision else []
        words += [tokenizer, self.tokenizer] if self.tokenizer else []
        return words + (["--chat-template", self.template] if self.template else [])

    def _named(self) -> list[str]:
        return [f"{name}={folder}" for name, folder in self.modules.items()]


@dataclass(frozen=True)
class ServePlan:
    """The servers of a target's models.

    Attributes:
        target: its name.
        host: where the servers listen.
        port: of the first; the others follow.
        servers: in order.
        merged: commands that write merged checkpoints, to be run before.
        notes: what needs a decision.
    """

    target: str
    host: str
    port: int
    servers: Sequence[PlannedServer]
    merged: Sequence[str]
    notes: Sequence[str]

    def commands(self, program: Program) -> list[str]:
        """One shell command for each server."""
        return [
            shlex.join(server.command(program, self.host, self.port + at)) for at, server in enumerate(self.servers)
        ]

    def params(self, program: Program) -> dict[str, Any]:
        """The section ``evaluate.server`` of ``params.yaml``."""
        urls = [f"http://{self.host}:{self.port + at}/v1" for at in range(len(self.servers))]
        names = {arm: name for server in self.servers for arm, name in server.names(program).items()}
        own = {
            arm: url for server, url in zip(self.servers, urls, strict=True) for arm in server.arms if url != urls[0]
        }
        section = {"url": urls[0], "names": names, "urls": own, "allow_hosts": [self.host]}
        ServerParams.model_validate(section)
        return {name: value for name, value in section.items() if value}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plan: dict[str, Any] = {"target": self.target, "merge": list(self.merged), "notes": list(self.notes)}
        for program in PROGRAMS:
            plan[program] = {"commands": self.commands(program), "server": self.params(program)}
        return plan


def serve_plan(
    ws: Workspace, target: str, *, host: str = "127.0.0.1", port: int = 8000, hub: bool = False
) -> ServePlan:
    """How the models of a target are served to ``evaluate``.

    Args:
        ws: the workspace.
        target: has a candidate.
        host: where the servers listen.
        port: of the first server.
        hub: name full checkpoints by their ids on the Hub, for servers elsewhere; by default their verified copies.

    Raises:
        ParamsError: there is no such target.
        ArtifactError: the target has no candidate, or an artefact is altered.
        CheckpointError: an arm cannot be served.
    """
    ws.require_target(target)
    pinned = ws.incumbent(target)
    models = evaluated_models(
        ws.aligned,
        ws.checkpoint(target),
        ws.candidate(target),
        pinned if pinned.is_file() else None,
        ws.params.fetch,
    )
    ids = _hub_ids((ws.aligned, ws.checkpoint(target)), models) if hub else {}
    return plan_servers(target, models, host=host, port=port, templates=ws.reports, ids=ids)


def plan_servers(
    target: str,
    models: Mapping[Arm, EvaluatedModel],
    *,
    host: str,
    port: int,
    templates: Path,
    ids: Mapping[Path, tuple[str, str | None]],
) -> ServePlan:
    """The servers of some models.

    Args:
        target: its name.
        models: arm -> model.
        host: where the servers listen.
        port: of the first server.
        templates: folder for a chat template that is in no file of its own.
        ids: folder of a full checkpoint -> (its id on the Hub, revision).

    Raises:
        CheckpointError: an arm cannot be served.
    """
    groups: dict[tuple[Path, ChatFiles], dict[Arm, EvaluatedModel]] = defaultdict(dict)
    merged, notes = list[str](), list[str]()
    for arm, model in models.items():
        chat = model.chat or ChatFiles(model.root, model.root, model.root)
        if reason := _not_served(model):
            model = EvaluatedModel(_merged(target, arm, reason, model, merged), (), model.contents, chat)
            notes.append(f"{arm}: {reason}, so it is served merged; rounding to the stored dtype changes it a little")
        groups[model.root, chat][arm] = model
    servers = [_server(root, chat, arms, templates / f"serve-{target}", ids) for (root, chat), arms in groups.items()]
    return ServePlan(target, host, port, servers, merged, notes)


def _server(
    root: Path,
    chat: ChatFiles,
    models: Mapping[Arm, EvaluatedModel],
    templates: Path,
    ids: Mapping[Path, tuple[str, str | None]],
) -> PlannedServer:
    itself = [arm for arm, model in models.items() if not model.adapters]
    modules = {arm: model.adapters[-1] for arm, model in models.items() if model.adapters}
    model, revision = ids.get(root, (str(root), None))
    other = chat.tokenizer != chat.root
    template = None if chat.template == (chat.tokenizer if other else chat.root) else _template(chat, templates)
    return PlannedServer(
        model=model,
        revision=revision,
        name=itself[0] if itself else f"base-of-{next(iter(modules))}",
        dtype=_dtype(chat.root),
        modules={arm: str(folder.resolve()) for arm, folder in modules.items()},
        rank=max((_rank(folder) for folder in modules.values()), default=0),
        arms={arm: arm if arm in modules else "" for arm in models},
        tokenizer=str(chat.tokenizer) if other else None,
        template=template,
    )


def _template(chat: ChatFiles, templates: Path) -> str:
    """The file of a chat template; written where the template is inside a JSON file."""
    path = chat.template / "chat_template.jinja"
    if not path.is_file():
        path = templates / path.name
        templates.mkdir(parents=True, exist_ok=True)
        path.write_text(chat_template_of(chat.template) or "", encoding="utf-8")
    return str(path.resolve())


def _rank(adapter: Path) -> int:
    config = read_json(adapter / ADAPTER_CONFIG)
    ranks = config.get("rank_pattern") or {}
    return max(int(config["r"]), *map(int, ranks.values())) if ranks else int(config["r"])


def _not_served(model: EvaluatedModel) -> str:
    """Why no server takes the adapter; empty where they take it, or there is none."""
    for folder in model.adapters:
        if read_json(folder / ADAPTER_CONFIG).get("target_parameters"):
            return "its adapter changes expert weights"
        if served_rank(rank := _rank(folder)) is None:
            return f"its adapter has rank {rank}, and vLLM serves {SERVED_RANKS[-1]} at most"
    return ""


def _merged(target: str, arm: Arm, reason: str, model: EvaluatedModel, commands: list[str]) -> Path:
    if arm != "candidate":
        raise CheckpointError(
            f"expected an adapter of {arm} that vLLM serves, got one where {reason}, in {model.adapters[0]}",
            remedy="name the fine-tune's merged checkpoint as the target, or evaluate without evaluate.server",
        )
    folder = Path(f"merged-{target}").resolve()
    dtype = "bfloat16" if _dtype(model.root) == "bfloat16" else "float32"
    command = ["safegene", "merge", target, str(folder), "--dtype", dtype]
    commands.append(shlex.join([*command, "--unverified"]))  # it is served to be judged
    return folder


def _dtype(root: Path) -> str:
    """The dtype of most of a checkpoint's numbers."""
    numbers: Counter[str] = Counter()
    for spec in open_checkpoint(root).specs.values():
        numbers[spec.dtype] += spec.numel
    return DTYPES.get(numbers.most_common(1)[0][0], "auto")


def _hub_ids(artefacts: Sequence[Path], models: Mapping[Arm, EvaluatedModel]) -> dict[Path, tuple[str, str | None]]:
    """Folder of a full checkpoint -> its id and revision, for those that come from the Hub."""
    ids = {}
    for artefact in artefacts:
        record = read_record(artefact)
        for model in models.values():
            if record.base is None and model.contents[0] == record.digest and record.source.startswith("hf://"):
                ids[model.root] = base_model_name(record)
    return ids
