"""The commit that a record names."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DESCRIBE = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def commit() -> str:
    """The commit of the tree, marked when it has changes; empty without git or a checkout."""
    try:
        done = subprocess.run(DESCRIBE, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
