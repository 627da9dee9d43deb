"""Mutated real files through the readers: a correct table or one error line, in bounded memory; never anything else."""

import gzip
import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import UserError
from tests.reliability.faults import LINES, ROWS

MUTANTS, MANY = 60, 3000  # of each format: always, and in the slow test
MEMORY = 3 * 2**30  # address space of the slow test's process


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()


def csv_bytes() -> bytes:
    file = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()


def tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo("rows.jsonl")
        entry.size = len(LINES)
        archive.addfile(entry, io.BytesIO(LINES))
    return file.getvalue()


def weights_bytes() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"embedding": torch.arange(64.0).reshape(8, 8), "bias": torch.ones(8)}, {"format": "pt"})


def rows_of(format: str, name: str, member: str | None = None) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        from configs.schema.data import SourceConfig
        from data.sources.batch import RowErrors
        from data.sources.files import SourceFile
        from data.sources.formats import batches

        file, source = SourceFile(path, name, member), SourceConfig(format=format)
        for batch in batches(file, ["q", "a"], RowErrors("data.sources.mine"), source):
            batch.table.validate(full=True)
            assert batch.table.column_names == ["q", "a"]

    return read


def read_corpus(path: Path) -> None:
    from training.vocabulary.corpora import parquet_texts

    for language, texts in parquet_texts(path, {"q": "ru", "a": "en"}):
        assert language in ("ru", "en") and all(isinstance(text, str) for text in texts.to_pylist())


def read_weights(path: Path) -> None:
    from pipeline.core.safetensors_io import ITEM_BYTES, SafetensorsReader

    path.replace(path.with_name("model.safetensors"))
    with SafetensorsReader(path.parent) as weights:
        for tensor in weights.tensors.values():
            weights.read(tensor, 0, tensor.items, bytearray(tensor.items * ITEM_BYTES[tensor.code]))


READERS: dict[str, tuple[Callable[[], bytes], Callable[[Path], None]]] = {
    "json lines": (lambda: LINES, rows_of("jsonl", "rows.jsonl")),
    "json array": (lambda: json.dumps(ROWS).encode(), rows_of("json", "rows.json")),
    "json lines in gzip": (lambda: gzip.compress(LINES), rows_of("jsonl", "rows.jsonl.gz")),
    "json lines in tar.gz": (tar_bytes, rows_of("jsonl", "rows.tar.gz", "*.jsonl")),
    "csv": (csv_bytes, rows_of("csv", "rows.csv")),
    "parquet": (parquet_bytes, rows_of("parquet", "rows.parquet")),
    "parquet of a corpus": (parquet_bytes, read_corpus),
    "safetensors": (weights_bytes, read_weights),
}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with bits flipped, cut short, with an inflated length, or with a part moved."""
    kind, place = rng.randrange(4), rng.randrange(len(content))
    if kind == 0:
        changed = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return content[:place]
    if kind == 2:
        width = rng.choice([1, 4, 8])
        return content[:place] + b"\xff" * width + content[place + width :]
    other = rng.randrange(len(content))
    return content[:place] + content[other : other + rng.randint(1, 64)] + content[place:]


def fuzz(name: str, mutants: int, folder: Path) -> int:
    """Read that many mutants; returns how many were refused. Any other exception propagates."""
    make, read = READERS[name]
    content, rng, refused = make(), random.Random(f"{name} 1"), 0
    for _ in range(mutants):
        path = folder / "mutant"
        path.write_bytes(mutated(content, rng))
        try:
            read(path)
        except UserError as error:
            assert "\n" not in error.line
            refused += 1
    return refused


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # a traceback in the terminal
@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    assert fuzz(name, MUTANTS, tmp_path) > 0


@pytest.mark.parametrize("read", [rows_of("parquet", "rows.parquet"), read_corpus])
def test_sizes_forged_in_a_parquet_footer_end_in_a_line_and_not_the_process(
    read: Callable[[Path], None], tmp_path: Path
) -> None:
    nullable, never_null = b"\x25\x02\x18\x01q", b"\x25\x00\x18\x01q"  # thrift: repetition and name of column q
    content = parquet_bytes()
    assert content.count(nullable) == 1
    (tmp_path / "forged.parquet").write_bytes(content.replace(nullable, never_null))
    with pytest.raises(UserError, match="histogram size mismatch"):
        read(tmp_path / "forged.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_mutants_in_bounded_memory_and_time(name: str, tmp_path: Path, repository: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; import torch, pyarrow; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY})); "
        "from tests.reliability.test_reader_fuzz import fuzz; "
        f"print(fuzz({name!r}, {MANY}, Path({str(tmp_path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout.split()[-1]) <= MANY  # libraries may print before
