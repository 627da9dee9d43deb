"""Peers outside our environment: their packages are in a separate folder that only their process sees.

Everything else they import (torch, transformers, …) comes from the lock, so both sides use the same versions.
"""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.core.artefact import replacing
from pipeline.core.errors import UserError

PEERS = {
    "flagembedding": ("FlagEmbedding==1.4.2", "peft==0.21.2"),
    "mergekit": ("mergekit==0.1.5", "immutables==0.21", "peft==0.21.2"),
}
FOLDER = Path("runs/bench/peers")


def peer_environment(name: str, folder: Path = FOLDER) -> dict[str, str]:
    """The environment variables under which a fresh process finds the peer; its packages are installed once.

    Raises UserError where pip can't install them.
    """
    target = (folder / name).resolve()
    if not target.is_dir():
        with replacing(target) as unfinished:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            done = subprocess.run([*pip, "--target", str(unfinished), *PEERS[name]], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
                remedy = "check the connection to the package index"
                raise UserError(f"{name} can't be installed: {reason}", where=str(target), remedy=remedy)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))}
