"""Embeddings by text: in memory, and, where a folder is given, on disk for the next run."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from pipeline.core.artefact import replacing


class EmbeddingCache:
    """Vectors by kind and text. `folder` belongs to one model fingerprint and precision; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._rows: dict[str, dict[str, int]] = {}  # kind -> text's digest -> row
        self._vectors: dict[str, dict[str, list[np.ndarray]]] = {}  # kind -> name -> blocks of rows

    def missing(self, kind: str, texts: Sequence[str]) -> list[str]:
        """The distinct texts of `texts` that have no vectors of this kind, in order."""
        if kind not in self._rows:
            self._load(kind)
        known = self._rows[kind]
        return [text for text in dict.fromkeys(texts) if digest(text) not in known]

    def add(self, kind: str, texts: Sequence[str], vectors: dict[str, np.ndarray]) -> None:
        """Keep vectors [texts, width], by name, of distinct texts that were missing."""
        keys = [digest(text) for text in texts]
        self._keep(kind, keys, vectors)
        if self.folder:
            place = self._place(kind)
            target = place / f"{digest(' '.join(keys))}.npz"
            # Runs share the folder, and two that lack the same texts write the same file.
            with FileLock(place / ".lock"), replacing(target) as path, path.open("wb") as file:
                np.savez(file, allow_pickle=False, **{"keys": np.array(keys), **vectors})

    def rows(self, kind: str, texts: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Vectors [texts, width] by name, in the order of `texts`, which must all be known."""
        index = [self._rows[kind][digest(text)] for text in texts]
        blocks = self._vectors[kind]
        for name in names:
            if len(blocks[name]) > 1:
                blocks[name] = [np.concatenate(blocks[name])]
        return {name: blocks[name][0][index] for name in names}

    def _keep(self, kind: str, keys: Sequence[str], vectors: dict[str, np.ndarray]) -> None:
        known = self._rows.setdefault(kind, {})
        known.update({key: len(known) + position for position, key in enumerate(keys)})
        for name, block in vectors.items():
            self._vectors.setdefault(kind, {}).setdefault(name, []).append(block)

    def _place(self, kind: str) -> Path:
        assert self.folder is not None
        return self.folder / hashlib.sha256(kind.encode()).hexdigest()[:16]

    def _load(self, kind: str) -> None:
        self._rows[kind] = {}
        if self.folder is None:
            return
        self._place(kind).mkdir(parents=True, exist_ok=True)
        (self._place(kind) / "kind.json").write_text(json.dumps(kind))
        for file in sorted(self._place(kind).glob("*.npz")):
            with np.load(file, allow_pickle=False) as stored:
                names = [name for name in stored.files if name != "keys"]
                self._keep(kind, [str(key) for key in stored["keys"]], {name: stored[name] for name in names})


def digest(text: str) -> str:
    """A text's key: 128 bits of its sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
