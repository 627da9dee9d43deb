"""The files of the bundled samples, read without the libraries that score them."""

import json
from pathlib import Path
from typing import Any

from pipeline.core.artefact import file_sha256

FOLDER = Path(__file__).resolve().parents[1] / "samples"


def read_samples(name: str) -> list[dict[str, Any]]:
    """Rows of a bundled sample file."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() if line]


def sample_digests(*names: str) -> list[str]:
    """sha256 of the files, on which their tasks depend."""
    return [file_sha256(FOLDER / f"{name}.jsonl") for name in names]
