"""Targets arrive on S3 while workers die: ``python -m benchmarks.operations.soak``, on the server of SAFEGENE_TEST_S3.

Two clones of one workspace serve the same deployments on one Prefect server. Fine-tunes of the tiny family arrive one
after the other in a watched prefix, shard by shard; one of the workers is killed and started again every so often, and
the server is restarted once. Every target must end in exactly one verdict and one record. Options make it smaller; the
figures of a smaller one say so, and meet no goal.

It prints what happens. Ctrl-C, or SIGTERM to the process that it names first, ends it with all that it has started:
then it prints the figures so far, and writes none.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import IO, Any

import httpx
import psutil

from benchmarks.results import Figure, markdown, measured_at, new_figure, publish, write

COMMAND = "python -m benchmarks.operations.soak"
FULL = (60, 30.0, 5.0)
"""Targets, minutes of arrivals, minutes between kills of the full size."""
SETTLE = 600.0
"""Seconds after the last event of a target in which something must happen, or the soak ends."""
DECIDED = ("pass", "fail", "inconclusive")
SAVING = {
    "mining: {rounds: 1}": "mining: {rounds: 0}",
    'cron: "0 3 * * *"': 'cron: "0 3 1 1 *"',
    'cron: "*/5 * * * *"': 'cron: "* * * * *"',
    "settle_seconds: 10 ": "settle_seconds: 2 ",
    "push_commits: false": "push_commits: true",
    "task: null": "task: topic",
}
EXPLAINED = (
    "{targets} fine-tunes of the tiny family (without mining) arrive within {minutes:g} minutes in a watched S3 prefix "
    "(a real server), {workers} workers in clones of one workspace, one killed every {kill:g} minutes, the Prefect "
    "server restarted once. Age in the queue: from the last byte of the upload to the start of the deciding run; "
    "time per target: from there to its record."
)


@dataclass
class Soak:
    """A soak in one folder.

    Attributes:
        folder: of its own.
        bucket: the S3 bucket.
        targets: how many arrive.
        minutes: within which they arrive.
        kill_minutes: between two kills of a worker.
        workers: how many serve.
        processes: the present process of each worker.
        arrived: target -> when its last byte was there, in seconds since 1970.
        kills: how many workers were killed.
        at_work: how many of them had a run.
        begun: when the soak began, on the monotonic clock.
    """

    folder: Path
    bucket: str
    targets: int
    minutes: float
    kill_minutes: float
    workers: int
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    arrived: dict[str, float] = field(default_factory=dict)
    kills: int = 0
    at_work: int = 0
    begun: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        """Print what happened, and when."""
        minutes, seconds = divmod(int(time.monotonic() - self.begun), 60)
        print(f"{minutes:3}:{seconds:02} {what}", flush=True)

    @property
    def environment(self) -> dict[str, str]:
        """Of every process: Prefect's home and the server's address."""
        api = f"http://127.0.0.1:{self.port}/api"
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_UI_ENABLED": "0"}
        return {**os.environ, **quiet, "PREFECT_HOME": str(self.folder / "prefect"), "PREFECT_API_URL": api}

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def clone(self, number: int) -> Path:
        """The folder of a worker: one name for all, so that they serve the same deployments."""
        return self.folder / f"worker-{number}" / "ws"

    def prepare(self) -> None:
        """The workspace with its family built, pushed, and cloned for every worker."""
        from safegene.pipeline.init import init

        store = f"s3://{self.bucket}"
        ws = init(self.folder / "ws", remote=f"{store}/dvc", ledger=f"{store}/ledger")
        text = (ws.root / "params.yaml").read_text(encoding="utf-8")
        saving = {**SAVING, "folders: []": f'folders: ["{store}/finetunes"]'}
        for old, new in saving.items():
            assert old in text, old
            text = text.replace(old, new, 1)
        (ws.root / "params.yaml").write_text(text, encoding="utf-8")
        self.server = self.start_server()
        self.say("the server answers; the family is built")
        self.run(ws.root, "safegene", "run")
        self.run(ws.root, "git", "clone", "--quiet", "--bare", ".", str(self.folder / "origin"))
        for number in range(self.workers):
            to = self.clone(number)
            to.parent.mkdir()
            self.run(self.folder, "git", "clone", "--quiet", str(self.folder / "origin"), str(to))
            self.run(to, "dvc", "pull", "--quiet")
            for name in ("user.name", "user.email"):
                self.run(to, "git", "config", name, f"worker-{number}@example.org")
        self.git_remote(ws.root)

    def git_remote(self, root: Path) -> None:
        """Let the first workspace follow what the workers push."""
        self.run(root, "git", "remote", "add", "origin", str(self.folder / "origin"))

    def run(self, folder: Path, *command: str) -> str:
        """Standard output of a command that must succeed."""
        program = shutil.which(command[0], path=str(Path(sys.executable).parent)) or command[0]
        done = subprocess.run(
            [program, *command[1:]], cwd=folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def start_server(self) -> subprocess.Popen[bytes]:
        """Prefect's server with all its services; ready when this returns."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        server = self.start(command, self.folder, "server")
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/api/health", timeout=5).status_code == 200:
                    return server
            time.sleep(0.5)
        raise SystemExit("the Prefect server did not answer within 180 s")

    def start(self, command: list[str], folder: Path, log: str) -> subprocess.Popen[bytes]:
        """A process in a session of its own, whose output is a log."""
        file: IO[bytes] = (self.folder / f"{log}.log").open("ab")
        with file:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_worker(self, number: int) -> None:
        """A worker in its clone."""
        command = [sys.executable, "-m", "flows.deployments"]
        self.processes[number] = self.start(command, self.clone(number), f"worker-{number}")

    def kill_worker(self) -> None:
        """Kill one of the workers, if possible one with a run, with all that it runs, and start it again."""
        busy = [number for number, process in self.processes.items() if psutil.Process(process.pid).children()]
        number = random.choice(busy or [*self.processes])  # noqa: S311 (no secret)
        kill(self.processes[number])
        self.kills += 1
        self.at_work += bool(busy)
        self.say(f"worker {number} killed{' at work' if busy else ''}, and started again")
        self.start_worker(number)

    def upload(self, name: str, source: Path) -> None:
        """A fine-tune, file by file; the weights last. Every one has another content."""
        import boto3
        from safetensors.torch import load_file, save

        (file,) = source.glob("*.safetensors")  # of an adapter, or of a whole model
        client, weights = boto3.client("s3"), load_file(file)
        first = sorted(weights)[0]
        weights[first] = weights[first] * (1 + 1e-4 * (1 + len(self.arrived)))
        for path in sorted(source.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            data = save(weights, {"format": "pt"}) if path.suffix == ".safetensors" else path.read_bytes()
            client.put_object(Bucket=self.bucket, Key=f"finetunes/{name}/{path.name}", Body=data)
        self.arrived[name] = time.time()
        self.say(f"{name} has arrived, {len(self.arrived)} of {self.targets}")

    def records(self) -> list[dict[str, Any]]:
        """Every record of the ledger, the newest first."""
        from safegene.ledger import open_ledger
        from safegene.workspace.layout import Workspace, cache_folder

        ws = Workspace(self.folder / "ws")
        fields = ("run_id", "end")
        return [
            {
                "target": record.target,
                "outcome": record.outcome,
                **{key: record.predicate.run.get(key) for key in fields},
            }
            for record in open_ledger(ws.params.promote, ws.root, cache=cache_folder() / "records").walk()
        ]

    def began(self, run: str) -> float:
        """When a run of Prefect began, in seconds since 1970."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/flow_runs/{run}", timeout=60).raise_for_status()
        return datetime.fromisoformat(answer.json()["start_time"]).timestamp()

    def go(self) -> None:
        """Let targets arrive, kill workers, restart the server, and wait until every target is decided."""
        from safegene.tiny.build import build

        source, start = build("topic", 0), time.monotonic()
        for number in range(self.workers):
            self.start_worker(number)
        between, restarted, last_kill = 60 * self.minutes / self.targets, False, time.monotonic()
        changed, decided = time.monotonic(), 0
        while True:
            passed = time.monotonic() - start
            if len(self.arrived) < self.targets and passed >= between * len(self.arrived):
                self.upload(f"target-{len(self.arrived):02}", source)
                changed = time.monotonic()
            if time.monotonic() - last_kill >= 60 * self.kill_minutes and len(self.arrived) < self.targets:
                self.kill_worker()
                last_kill = time.monotonic()
            if not restarted and passed >= 30 * self.minutes:
                kill(self.server)
                self.server, restarted = self.start_server(), True
                self.say("the server was killed, and answers again")
            now = len({one["target"] for one in self.records() if one["outcome"] in DECIDED})
            if now != decided:
                changed, decided = time.monotonic(), now
                self.say(f"{decided} of {self.targets} decided")
            if decided == self.targets or time.monotonic() - changed > SETTLE + 60 * self.kill_minutes:
                return
            time.sleep(5)


def stop(*_: object) -> None:
    """What SIGTERM does: the same as Ctrl-C."""
    raise KeyboardInterrupt


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def soaking(options: argparse.Namespace) -> Iterator[Soak]:
    """A soak with keys, memory, cache and bucket of its own; every process ends with the block."""
    import boto3

    os.environ["AWS_ENDPOINT_URL"] = os.environ["SAFEGENE_TEST_S3"]
    bucket = f"safegene-soak-{os.getpid()}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    with TemporaryDirectory(prefix="safegene-soak-", ignore_cleanup_errors=True) as name:
        for variable in ("SAFEGENE_KEYS", "SAFEGENE_STATE"):
            os.environ[variable] = str(Path(name) / variable)
            Path(name, variable).mkdir(mode=0o700)
        soak = Soak(Path(name), bucket, options.targets, options.minutes, options.kill, options.workers)
        try:
            soak.prepare()
            yield soak
        finally:
            for process in (*soak.processes.values(), *([soak.server] if hasattr(soak, "server") else [])):
                kill(process)
            if options.keep:
                shutil.copytree(name, options.keep, ignore=shutil.ignore_patterns(".dvc", "dvc"), dirs_exist_ok=True)


def figures_of(soak: Soak, seconds: float) -> list[Figure]:
    """What the records say; goals are those of the full size only."""
    records = [one for one in soak.records() if one["target"] in soak.arrived]
    by_target = {name: [one for one in records if one["target"] == name] for name in soak.arrived}
    decided = {name: [one for one in rows if one["outcome"] in DECIDED] for name, rows in by_target.items()}
    once = sum(len(rows) == 1 and len(decided[name]) == 1 for name, rows in by_target.items())
    full = (soak.targets, soak.minutes, soak.kill_minutes) == FULL
    size = f"{soak.targets} targets in {soak.minutes:g} min, a kill every {soak.kill_minutes:g} min"
    size += "" if full else " (not the full size)"
    ages, times = list[float](), list[float]()
    for name, rows in decided.items():
        for one in rows[:1]:
            began = soak.began(one["run_id"])
            ages.append(began - soak.arrived[name])
            times.append(datetime.fromisoformat(one["end"]).timestamp() - began)

    def figure(name: str, value: float, unit: str, *, goal: str = "", good: bool | None = None) -> Figure:
        return new_figure(
            f"soak, {size}: {name}",
            value,
            unit,
            command=COMMAND,
            goal=goal if full else "",
            holds=good if full else None,
        )

    return [
        figure(
            "exactly one verdict and one record", once, "targets", goal=str(soak.targets), good=once == soak.targets
        ),
        figure("without a decision", sum(not rows for rows in decided.values()), "targets"),
        figure("decided more than once", sum(len(rows) > 1 for rows in decided.values()), "targets"),
        figure("records of errors", sum(one["outcome"] == "error" for one in records), "records"),
        figure("workers killed", soak.kills, "kills"),
        figure("workers killed while they had a run", soak.at_work, "kills"),
        figure("age in the queue, median", round(median(ages), 1) if ages else -1, "s"),
        figure("age in the queue, longest", round(max(ages), 1) if ages else -1, "s"),
        figure("time per target, median", round(median(times), 1) if times else -1, "s"),
        figure("time per target, longest", round(max(times), 1) if times else -1, "s"),
        figure("from the first upload to the last decision", round(seconds, 1), "s"),
    ]


def main() -> None:
    """Measure, and write ``soak.json`` and the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=FULL[0])
    parser.add_argument("--minutes", type=float, default=FULL[1], help="within which the targets arrive")
    parser.add_argument("--kill", type=float, default=FULL[2], help="minutes between two kills of a worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for the logs and clones")
    options = parser.parse_args()
    if not os.environ.get("SAFEGENE_TEST_S3"):
        print("the soak is left out: SAFEGENE_TEST_S3 names no S3 server")
        return
    signal.signal(signal.SIGTERM, stop)
    print(f"process {os.getpid()}: {options.targets} targets in {options.minutes:g} minutes", flush=True)
    stopped = False
    with soaking(options) as soak:
        start = time.monotonic()
        try:
            soak.go()
        except KeyboardInterrupt:
            stopped = True
        figures = figures_of(soak, time.monotonic() - start)
    print(json.dumps([(one.name, one.value) for one in figures], indent=1))
    if stopped:
        raise SystemExit("stopped: no figures were written")
    write(Path(__file__).with_suffix(".json"), figures)
    told = EXPLAINED.format(targets=soak.targets, minutes=soak.minutes, workers=soak.workers, kill=soak.kill_minutes)
    publish("operations-soak", "Soak", measured_at(COMMAND), f"{told}\n\n{markdown(figures)}")


if __name__ == "__main__":
    main()
