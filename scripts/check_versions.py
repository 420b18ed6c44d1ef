"""Check that the locked versions came: ``python -m scripts.check_versions requirements.lock [PIN ...]``."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def wrong_versions(pins: list[str]) -> list[str]:
    """A sentence for every ``name==version`` that is not installed so (local build tags such as +cpu are ignored)."""
    wrong = []
    for pin in pins:
        name, expected = pin.split("==")
        name = name.split("[")[0].strip()
        try:
            got = version(name).split("+")[0]
        except PackageNotFoundError:
            got = "nothing"
        if got != expected.split(";")[0].split("+")[0].strip():
            wrong.append(f"expected {name} {expected}, got {got}")
    return wrong


def main(lock: str, *more: str) -> int:
    """Print what is wrong; 1 if anything is."""
    lines = [line.strip() for line in Path(lock).read_text().splitlines()]
    pins = [line for line in [*lines, *more] if "==" in line and not line.startswith("#")]
    wrong = wrong_versions(pins)
    print("\n".join(wrong) or f"{len(pins)} packages as locked")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
