"""The audit page's script, run where safegene cannot be imported."""

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "audit.md"
WITHOUT = "import sys; sys.modules['safegene'] = None; sys.argv = sys.argv[1:]; exec(open(sys.argv[0]).read())"


def verify_as_outsider(root: Path, ledger: str = "ledger") -> "subprocess.CompletedProcess[str]":
    """Run the script on the ledger of a workspace, with the public key that is pinned there."""
    script = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```\n")[0]
    assert "safegene" not in script
    file = root.parent / "verify_ledger.py"
    file.write_text(script, encoding="utf-8")
    command = [sys.executable, "-I", "-c", WITHOUT, str(file), str(root / ledger), str(root / "ledger.pub")]
    return subprocess.run(command, cwd=root.parent, capture_output=True, text=True, check=False)
