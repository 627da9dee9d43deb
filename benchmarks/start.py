"""The models that benchmarks start from: the demo's, made if missing."""

import subprocess
import sys
from pathlib import Path

from pipeline.application import composed


def demo_base() -> Path:
    """Folder of the demo's base."""
    return _made("base", "base")


def demo_init() -> Path:
    """Folder of the demo's base with the smaller vocabulary; runs its stages `data` and `init` if needed."""
    return _made("data,init", "init")


def _made(stages: str, last: str) -> Path:
    subprocess.run([sys.executable, "-m", "pipeline.run", "profile=demo", f"stages=[{stages}]"], check=True)
    return composed("profile=demo").folder(last)
