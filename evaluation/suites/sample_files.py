"""The files of the bundled samples, read without the libraries that score them."""

import json
from pathlib import Path
from typing import Any

from pipeline.core.artefact import file_sha256
from pipeline.core.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "samples"


def read_samples(name: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Rows of a bundled sample file; raises UserError where it is missing or malformed."""
    path = folder / f"{name}.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"can't read samples: {error}", where=str(path), remedy="restore the file") from error


def sample_digests(*names: str) -> list[str]:
    """sha256 of the files: what a task over them depends on."""
    return [file_sha256(FOLDER / f"{name}.jsonl") for name in names]


class SampleFiles:
    """The bundled files in the place of encodechka's."""

    def rows(self, name: str) -> list[dict[str, Any]]:
        return read_samples(name)
