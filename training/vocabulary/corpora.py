"""The texts whose pieces are counted, and on which the certificate is made."""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs.schema.config import Config
from configs.schema.data import HubFiles
from configs.schema.init import BY_SCRIPT, CorpusConfig, InitConfig
from data.sources.batch import is_list, is_text
from data.sources.files import Located, hub_files, local_files
from pipeline.core.artefact import file_sha256
from pipeline.core.console import progress
from pipeline.core.errors import UserError
from pipeline.core.hub import Revision, locked_commit

ROWS = 4096  # rows of a parquet file in memory at once
PAIR_COLUMNS = ("anchor", "positive", "negatives")


@dataclass(frozen=True)
class Corpus:
    """One corpus with its files found."""

    name: str
    config: CorpusConfig
    files: tuple[Path, ...]
    source: str  # where the files came from: a folder, a commit of the Hub, a mirror

    def texts(self, purpose: str) -> Iterator[tuple[str, pa.ChunkedArray]]:
        """(language or `script`, texts) in batches, always in the same order; shows progress with the `purpose`.

        Raises UserError: a file that is not UTF-8 or not parquet, or a missing column.
        """
        columns = dict.fromkeys(PAIR_COLUMNS, self.config.language)
        if self.config.kind == "hub":
            columns = self.config.columns
        for path in progress(self.files, f"{purpose}: {self.name}"):
            if self.config.kind == "text":
                yield from ((self.config.language, pa.chunked_array([lines])) for lines in corpus_lines(path))
            else:
                yield from parquet_texts(path, columns)


def find_corpora(config: InitConfig, languages: list[str], data: Path, mirror: str | None) -> list[Corpus]:
    """The configured corpora with their files; `data` is the folder of stage data.

    Raises UserError: files that don't exist, or a language that no corpus serves.
    """
    for language in languages:
        if not any({language, BY_SCRIPT} & corpus.languages for corpus in config.corpora.values()):
            remedy = f"add a corpus with language: {language} under init.corpora, or take it out of languages"
            raise UserError(f"language {language} has no corpus", where="config key languages", remedy=remedy)
    return [_find(name, corpus, data, mirror) for name, corpus in config.corpora.items()]


def held_back_sets(data: Path) -> Iterator[Iterator[pa.ChunkedArray]]:
    """The anchors and positives of each dev and held-out set, in batches."""
    for path in sorted([*(data / "dev").glob("*.parquet"), *(data / "heldout").glob("*.parquet")]):
        yield (texts for _, texts in parquet_texts(path, dict.fromkeys(PAIR_COLUMNS[:2], BY_SCRIPT)))


def corpus_states(config: Config) -> dict[str, str]:
    """Fingerprints of the local files that are counted or certified, and the locked commits of those on the Hub."""
    found = {}
    for corpus in () if config.mirror else config.init.counted.values():
        if corpus.kind == "hub" and (commit := locked_commit(Revision("dataset", str(corpus.hub), corpus.revision))):
            found[f"lock:{corpus.hub}"] = commit
    return found | {f"file:{path}": file_sha256(path) for path in counted_files(config)}


def counted_files(config: Config) -> list[Path]:
    """The local files that are counted or certified, except pairs; raises UserError for one that doesn't exist."""
    files = certified_files(config.init)
    for name, corpus in config.init.counted.items():
        if corpus.kind == "text":
            files += _local_files(f"init.corpora.{name}", "files", corpus.files)
        elif corpus.kind == "hub" and config.mirror:
            files += [file.path for file in _hub_files(name, corpus, config.mirror).files]
    return files


def certified_files(config: InitConfig) -> list[Path]:
    """The further text files that the certificate is made on; raises UserError for one that doesn't exist."""
    return _local_files("init", "certify", config.certify)


def _local_files(key: str, setting: str, places: Iterable[str]) -> list[Path]:
    return [file.path for place in places for file in local_files(key, setting, place)]


def _hub_files(name: str, config: CorpusConfig, mirror: str | None) -> Located:
    return hub_files(f"init.corpora.{name}", HubFiles(str(config.hub), config.revision, config.files), mirror)


def corpus_lines(path: Path) -> Iterator[list[str]]:
    """The lines of a file, plain or .gz, that are not empty, in batches; raises UserError where it is not UTF-8."""
    lines, number = list[str](), 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                number += 1
                if text := line.rstrip(b"\r\n").decode("utf-8"):
                    lines.append(text)
                if len(lines) == ROWS:
                    yield lines
                    lines = []
    except UnicodeDecodeError:
        where, remedy = f"{path}, line {number}", "convert it, for example with iconv"
        raise UserError("a corpus file is not UTF-8", where=where, remedy=remedy) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = f"a corpus file can't be unpacked: {error}"
        raise UserError(what, where=str(path), remedy="make or download it again") from None
    if lines:
        yield lines


def parquet_texts(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """(language, texts) of columns of texts or of lists of texts, `a.b` inside a struct, in batches; without nulls.

    Raises UserError on a file that is not parquet, or where a column is missing or holds something else.
    """
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.empty_table().flatten().schema
            for name in columns:
                if name not in there.names:
                    remedy = f"correct init.corpora; columns there: {', '.join(there.names)}"
                    raise UserError(f"no column {name}", where=str(path), remedy=remedy)
                if not _holds_texts(kind := there.field(name).type):
                    what = f"column {name} holds {kind}, not text"
                    raise UserError(what, where=str(path), remedy="correct init.corpora or the file")
            for group in range(file.num_row_groups):  # rows of several may be more than the 2 GiB that Arrow can join
                for batch in file.iter_batches(ROWS, [group], columns=list(columns)):
                    batch.validate(full=True)  # also that texts are UTF-8
                    rows = pa.Table.from_batches([batch]).flatten()
                    yield from ((language, _texts(rows[name])) for name, language in columns.items())
    except (pa.ArrowException, OSError) as error:
        what = f"not a parquet file, or a damaged one: {error}"
        raise UserError(what, where=str(path), remedy="make or download it again") from None


def _holds_texts(kind: pa.DataType) -> bool:
    return _holds_texts(kind.value_type) if is_list(kind) else is_text(kind) or pa.types.is_null(kind)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    while is_list(column.type):
        column = pc.list_flatten(column)
    return column.drop_null()


def _find(name: str, config: CorpusConfig, data: Path, mirror: str | None) -> Corpus:
    key = f"init.corpora.{name}"
    if config.kind == "text":
        return Corpus(name, config, tuple(_local_files(key, "files", config.files)), "local files")
    if config.kind == "pairs":
        from data.artefact import set_files  # imports polars, which deciding what to make doesn't need

        files = [path for _, path in set_files(data)]
        if config.files:
            files = _local_files(key, "files", [str(data / inside) for inside in config.files])
        if not files:
            raise UserError("there are no prepared pairs", where=str(data), remedy="make them first: make data")
        return Corpus(name, config, tuple(files), "stage data")
    located = _hub_files(name, config, mirror)
    return Corpus(name, config, tuple(file.path for file in located.files), located.revision)
