"""The wheel, installed in an environment elsewhere that has no checkout."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any


class Installation:
    """A virtual environment outside the checkout that finds the dependencies where this interpreter finds them.

    A ``.pth`` file names the folder of the dependencies. Python does not read the ``.pth`` files inside that folder, so
    the editable installation of the checkout stays invisible.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "venv" / "bin"
        self.call(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
        packages = next((folder / "venv").glob("lib/python*/site-packages"))
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def call(self, *command: str, cwd: Path | None = None, **env: str) -> str:
        """Standard output of a command, which must succeed."""
        return self.run(*command, cwd=cwd, **env).stdout

    def run(self, *command: str, cwd: Path | None = None, **env: str) -> "subprocess.CompletedProcess[str]":
        """A command, which must succeed, and what it printed."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PREFECT_API_URL", "VIRTUAL_ENV")}
        environment |= {"COLUMNS": "400", **env}
        done = subprocess.run(
            command, cwd=cwd or self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def build(self, source: Path) -> Path:
        """A wheel of a source folder."""
        out = self.folder / f"wheels-{source.name}"
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation")
        self.call(*pip, "--wheel-dir", str(out), str(source))
        [wheel] = out.glob("*.whl")
        return wheel

    def install(self, wheel: Path) -> None:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(self.bin / "python"))
        self.call(*pip, "install", "--no-deps", "--no-index", str(wheel))

    def safegene(self, *command: str, cwd: Path | None = None, **env: str) -> str:
        return self.call(str(self.bin / "safegene"), *command, cwd=cwd, **env)

    def python(self, code: str) -> Any:
        """What a program prints as JSON."""
        return json.loads(self.call(str(self.bin / "python"), "-c", code))
