"""Faults that users' files can have, as functions that plant them in a copy of a finished run."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.runs import put, remove_stage

Plant = Callable[[Path], list[str]]  # run folder -> further overrides
Change = Callable[[bytes], bytes | str]

ROWS = [{"q": f"Вопрос номер {n} про реку?", "a": f"Подробный ответ номер {n} о том, как она течёт."} for n in range(9)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
SOURCE = {"title": "Mine", "side": "asymmetric", "format": "jsonl", "columns": {"anchor": "q", "positive": "a"}}
DAMAGED = "but one of its files was changed"


def nothing(run: Path) -> list[str]:
    """Only the command line is wrong."""
    return []


def mixture(text: bytes | str) -> Plant:
    """The user's own mixture, `configs/data/mine.yaml` in the user's folder."""

    def plant(run: Path) -> list[str]:
        put(run.parent / "conf/data/mine.yaml", text)
        return [f"hydra.searchpath=[file://{run.parent}/conf]", "data=mine"]

    return plant


def source(name: str, content: bytes | Callable[[Path], Any], **fields: Any) -> Plant:
    """A mixture of one local file, `name`."""

    def plant(run: Path) -> list[str]:
        path = run.parent / name
        put(path, content) if isinstance(content, bytes) else content(path)
        settings = {"sources": {"mine": {**SOURCE, "path": str(path), **fields}}, "dev": {"anchors": 0}}
        return mixture(json.dumps(settings))(run)

    return plant


def corpus(content: bytes | None) -> Plant:
    """The vocabulary counted on one text file of the user, which is missing where there is no content."""

    def plant(run: Path) -> list[str]:
        path = run.parent / "corpus.txt"
        if content is not None:
            put(path, content)
        return ["init=notebook", "init.rule=closure", f"init.corpora.ru.files=[{path}]", "~init.corpora.en"]

    return plant


def parquet(**columns: Callable[[int], Any]) -> Callable[[Path], None]:
    """Writes ROWS with some columns replaced; each function gets the number of rows."""

    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(ROWS)
        for column, made in columns.items():
            table = table.set_column(table.column_names.index(column), column, made(len(table)))
        pq.write_table(table, path)

    return write


def broken_utf8(count: int) -> Any:
    """An Arrow column of texts that are not UTF-8."""
    import pyarrow as pa

    bytes_ = pa.array([b"\xff\xfe"] * count, pa.binary())
    return pa.Array.from_buffers(pa.string(), count, bytes_.buffers())


def archive(*members: tuple[str, bytes, str | bytes]) -> Callable[[Path], None]:
    """Writes a tar.gz of (name, type, content or link)."""

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz") as tar:
            for name, kind, content in members:
                entry = tarfile.TarInfo(name)
                entry.type = kind
                if isinstance(content, bytes):
                    entry.size = len(content)
                else:
                    entry.linkname = content
                tar.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)

    return write


def archived_source(*members: tuple[str, bytes, str | bytes]) -> Plant:
    """A mixture of one data set of a mirror, its rows in a tar.gz."""

    def plant(run: Path) -> list[str]:
        archive(*members)(run.parent / "mirror/me/set/rows.tar.gz")
        mine = {**SOURCE, "hub": "me/set", "files": ["rows.tar.gz::*.jsonl"]}
        overrides = mixture(json.dumps({"sources": {"mine": mine}, "dev": {"anchors": 0}}))(run)
        return [*overrides, f"mirror={run.parent}/mirror"]

    return plant


def edited(place: str, change: Change) -> Plant:
    """A file of the run, or of its base (`bases/...`), with other contents than its stage left."""

    def plant(run: Path) -> list[str]:
        path = (run.parent if place.startswith("bases/") else run) / place
        put(path, change(path.read_bytes()))
        return []

    return plant


def without(stage: str) -> Plant:
    """A run in which a stage was not made."""

    def plant(run: Path) -> list[str]:
        remove_stage(run / stage)
        return []

    return plant


def one_bit(content: bytes) -> bytes:
    """The content with one bit flipped in the middle; the size stays."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def base_with(name: str, change: Change) -> Plant:
    """A base from a mirror, with one file changed."""

    def plant(run: Path) -> list[str]:
        folder = run.parent / "mirror/someone/model"
        shutil.copytree(run.parent / "bases/tiny", folder)
        present = (folder / name).read_bytes() if (folder / name).is_file() else b""
        put(folder / name, change(present))
        return ["base.kind=hub", "base.hub=someone/model", "base.name=other", f"mirror={run.parent}/mirror"]

    return plant


def base_with_pickle(run: Path) -> list[str]:
    """A base whose weights are a pickle that runs a command when it is loaded unsafely."""
    overrides = base_with("pytorch_model.bin", lambda _: malicious_pickle())(run)
    (run.parent / "mirror/someone/model/model.safetensors").unlink()
    return overrides


def malicious_pickle() -> bytes:
    """torch's file format around an object whose unpickling would raise SystemExit."""
    import torch

    file = io.BytesIO()
    torch.save({"embeddings.word_embeddings.weight": _Malicious()}, file)
    return file.getvalue()


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return exit, ("code of the file was run",)


def model_with(name: str, change: Change) -> Plant:
    """The user's model folder with one file changed, given to the stage evaluate."""

    def plant(run: Path) -> list[str]:
        folder = run.parent / "mine"
        shutil.copytree(run / "merge/model", folder)
        put(folder / name, change((folder / name).read_bytes()))
        return [f"evaluation.models=[{folder}]", "evaluation.chain=[]"]

    return plant


def model_without_files(run: Path) -> list[str]:
    """An empty folder given to the stage evaluate."""
    (run.parent / "empty").mkdir()
    return [f"evaluation.models=[{run.parent}/empty]", "evaluation.chain=[]"]


def json_with(**changes: Any) -> Change:
    """A JSON object with fields added or changed."""
    return lambda content: json.dumps(json.loads(content) | changes)


def vocabulary_with(place: int, entry: list[Any]) -> Change:
    """tokenizer.json with another entry at this place of the vocabulary."""

    def change(content: bytes) -> str:
        document = json.loads(content)
        document["model"]["vocab"][place] = entry
        return json.dumps(document)

    return change


def tensors_with(change_tensors: Callable[[dict[str, Any]], Any]) -> Change:
    """A safetensors file whose tensors were changed in place."""

    def change(content: bytes) -> bytes:
        from safetensors.torch import load, save

        tensors = load(content)
        change_tensors(tensors)
        return save(tensors, {"format": "pt"})

    return change


def number_at(tensor: str, value: float) -> Change:
    """A safetensors file with one number replaced in the tensor whose name ends so."""

    def replace(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if name.endswith(tensor))
        tensors[name].view(-1)[7] = value

    return tensors_with(replace)


def without_layer(tensors: dict[str, Any]) -> None:
    """Drop the second layer's tensors."""
    for name in [name for name in tensors if ".layer.1." in name]:
        del tensors[name]
