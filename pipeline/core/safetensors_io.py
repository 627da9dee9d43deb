"""safetensors files read and written in pieces, without memory mapping: memory does not grow with the model."""

import errno
import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from pipeline.core.artefact import read_json
from pipeline.core.errors import UserError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WHOLE = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
CODES = {name: code for code, name in FLOATING.items()}
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
ALIGNMENT = 8  # safetensors starts its data at a multiple of this
STORED_AT_ONCE = 1 << 26  # bytes flushed to the disk at once
COPIED_AT_ONCE = 1 << 18  # bytes copied at once if the kernel can't copy; they fit into the processor's cache
NOT_BY_KERNEL = (errno.ENOTSOCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # macOS; some file systems


class EagerFile(AbstractContextManager["EagerFile"]):
    """A new file, written sequentially.

    Linux keeps written data in memory until it is flushed. A thread flushes it part by part, so that synchronising the
    file at the end waits for the last parts only. On other systems it is a plain file.
    """

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("wb", buffering=0)
        self._disk = ThreadPoolExecutor(max_workers=1)
        self._stored = 0  # bytes from the start whose flush was requested

    def __exit__(self, *error: object) -> None:
        self._disk.shutdown(cancel_futures=True)
        self.file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest) :]
        self._store()

    def copy(self, source: BinaryIO, start: int, count: int) -> int:
        """Append `count` bytes of another file from byte `start` on; fewer only if that file ends."""
        done = 0
        while done < count and (copied := self._copy_some(source, start + done, count - done)):
            done += copied
        self._store()
        return done

    def _copy_some(self, source: BinaryIO, start: int, count: int) -> int:
        try:
            return os.sendfile(self.file.fileno(), source.fileno(), start, count)
        except OSError as error:
            if error.errno not in NOT_BY_KERNEL:
                raise
            return self.file.write(os.pread(source.fileno(), min(count, COPIED_AT_ONCE), start))

    def _store(self) -> None:
        end = self.file.tell()
        if end - self._stored < STORED_AT_ONCE or not hasattr(os, "posix_fadvise"):
            return
        # On this advice Linux first writes the pages to the disk; only a second call would drop them.
        self._disk.submit(
            os.posix_fadvise, self.file.fileno(), self._stored, end - self._stored, os.POSIX_FADV_DONTNEED
        )
        self._stored = end


@dataclass(frozen=True)
class StoredTensor:
    """The location of a tensor's data."""

    file: Path
    code: str  # safetensors' name of the dtype, such as BF16
    shape: tuple[int, ...]
    start: int  # byte in the file

    @property
    def items(self) -> int:
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        return self.code in FLOATING


class SafetensorsReader(AbstractContextManager["SafetensorsReader"]):
    """The tensors of a folder with `model.safetensors` or its shards, by name, in the order of the files.

    Tensors that share memory are stored once; names that the file's metadata maps to a stored one
    (`safetensors.torch.save_model` writes these) are resolved.

    Raises UserError for a missing safetensors file or shard, a truncated file, or an unknown dtype.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self.metadata: dict[str, str] = {}
        self._files: dict[Path, BufferedReader] = {}
        for path in weight_files(folder):
            header, data_start = read_header(path)
            self.metadata |= header.pop("__metadata__", {})
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                if entry["dtype"] not in ITEM_BYTES:
                    what = f"tensor {name} has dtype {entry['dtype']}"
                    raise UserError(what, where=str(path), remedy="save the model as float32, bfloat16 or float16")
                start = data_start + entry["data_offsets"][0]
                self.tensors[name] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), start)

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def find(self, name: str) -> StoredTensor | None:
        """The tensor of this name or alias, or None."""
        return self.tensors.get(name) or self.tensors.get(self.metadata.get(name, ""))

    def read(self, tensor: StoredTensor, first: int, count: int, buffer: bytearray) -> memoryview:
        """Items `first` up to `first + count` of a tensor, in `buffer`, which must be large enough."""
        size = ITEM_BYTES[tensor.code]
        part = memoryview(buffer)[: count * size]
        file = self._open(tensor.file)
        file.seek(tensor.start + first * size)
        if file.readinto(part) < len(part):
            raise _broken(tensor.file, "it ends too early")
        return part

    def copy(self, tensor: StoredTensor, first: int, count: int, target: EagerFile) -> None:
        """Append items `first` up to `first + count` of a tensor to a file, bit by bit."""
        size = ITEM_BYTES[tensor.code]
        if target.copy(self._open(tensor.file), tensor.start + first * size, count * size) < count * size:
            raise _broken(tensor.file, "it ends too early")

    def _open(self, path: Path) -> BufferedReader:
        if path not in self._files:
            self._files[path] = path.open("rb")
        return self._files[path]


def weight_files(folder: Path) -> list[Path]:
    """A model folder's safetensors files: one, or the shards in its index; as in transformers, one if there are both.

    An index may be left over from an earlier save in shards.
    """
    index = folder / INDEX_FILE
    is_sharded = index.is_file() and not (folder / WEIGHTS_FILE).is_file()
    paths = [folder / shard for shard in _shards(index)] if is_sharded else [folder / WEIGHTS_FILE]
    for path in paths:
        if not path.is_file():
            remedy = "save the model as safetensors; if a stage made the folder, remove it and run again"
            raise UserError("no weights in safetensors", where=str(path), remedy=remedy)
    return paths


def _shards(index: Path) -> list[str]:
    """Names of the shards, which are in their index's folder."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(index, f"{type(error).__name__} in its index") from None
    if outside:
        raise _broken(index, f"its index names a file elsewhere, {outside[0]}")
    return names


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header and the offset of its data; the library validates the file first."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise _broken(path, str(error)) from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def write_header(
    file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], codes: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    """Write the header of a safetensors file whose tensors follow in the order of `shapes` without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[codes[name]]
        header[name] = {"dtype": codes[name], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)


def _broken(path: Path, why: str) -> UserError:
    return UserError(f"not a whole safetensors file: {why}", where=str(path), remedy="make or download the model again")
