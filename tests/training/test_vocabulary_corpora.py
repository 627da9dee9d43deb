"""Corpora: text files, prepared pairs, parquet in the Hub's layout; and what can be wrong with them."""

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from configs.schema.init import CorpusConfig, InitConfig
from pipeline.core.errors import UserError
from training.vocabulary.corpora import Corpus, find_corpora

OPUS = CorpusConfig(
    kind="hub",
    hub="someone/parallel",
    files=["en-ru/train.parquet"],
    columns={"translation.ru": "ru", "translation.en": "en"},
)


def found(config: CorpusConfig, data: Path, languages: list[str], mirror: str | None = None) -> Corpus:
    return find_corpora(InitConfig(corpora={"it": config}), languages, data, mirror)[0]


def texts(corpus: Corpus) -> dict[str, list[str]]:
    collected: dict[str, list[str]] = {}
    for language, batch in corpus.texts("reading"):
        collected.setdefault(language, []).extend(batch.to_pylist())
    return collected


def write(path: Path, columns: dict[str, list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_text_files_are_read_line_by_line_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes("дом\r\n\n лес \u2028x\n".encode())
    (tmp_path / "a.txt").write_text("река")
    corpus = found(CorpusConfig(kind="text", language="ru", files=[str(tmp_path / "*.txt")]), tmp_path, ["ru"])
    assert texts(corpus) == {"ru": ["река", "дом", " лес \u2028x"]}


def test_prepared_pairs_are_all_texts_of_both_sides(tmp_path: Path) -> None:
    row = {"anchor": ["а", "б"], "positive": ["в", "г"], "negatives": [["д", "е"], []], "score": [1.0, None]}
    write(tmp_path / "symmetric/one.parquet", row)
    write(tmp_path / "asymmetric/two.parquet", {**row, "anchor": ["ж", "з"]})
    write(tmp_path / "dev/two.parquet", {**row, "anchor": ["и", "к"]})
    corpus = found(CorpusConfig(), tmp_path, ["ru"])
    assert sorted(texts(corpus)["script"]) == sorted("абвгде" + "жзвгде")


def test_columns_of_the_hub_s_files_have_their_own_languages(tmp_path: Path) -> None:
    rows = [{"ru": "дом", "en": "house"}, {"ru": None, "en": "river"}]
    write(tmp_path / "someone/parallel/en-ru/train.parquet", {"translation": rows})
    corpus = found(OPUS, tmp_path, ["ru", "en"], mirror=str(tmp_path))
    assert texts(corpus) == {"ru": ["дом"], "en": ["house", "river"]}


def test_missing_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prepared pairs.*make data"):
        found(CorpusConfig(), tmp_path, ["ru"])
    with pytest.raises(UserError, match=r"it: the mirror has no someone/parallel .*remove init.corpora.it"):
        found(OPUS, tmp_path, ["ru", "en"], mirror=str(tmp_path))


def test_a_missing_column_and_a_broken_file_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "someone/parallel/en-ru/train.parquet"
    write(path, {"text": ["дом"]})
    with pytest.raises(UserError, match=r"no column translation.*columns there: text"):
        texts(found(OPUS, tmp_path, ["ru"], mirror=str(tmp_path)))
    write(path, {"translation": [{"en": "house"}]})
    with pytest.raises(UserError, match=r"no column translation.ru"):
        texts(found(OPUS, tmp_path, ["ru"], mirror=str(tmp_path)))
    path.write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"not a parquet file"):
        texts(found(OPUS, tmp_path, ["ru"], mirror=str(tmp_path)))


def test_without_network_the_hub_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it: the Hub can't be reached .*someone/parallel.*mirror="):
        found(OPUS, tmp_path, ["ru"])


def test_a_folder_is_all_its_files_but_the_hidden_ones(tmp_path: Path) -> None:
    for file in ("b.txt", "deeper/a.txt", ".ipynb_checkpoints/b.txt", "b.txt~"):
        (tmp_path / "texts" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / file).write_text(file)
    corpus = found(CorpusConfig(kind="text", language="ru", files=[str(tmp_path / "texts")]), tmp_path, ["ru"])
    assert texts(corpus) == {"ru": ["b.txt", "deeper/a.txt"]}


def test_a_packed_file_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "texts.gz"
    corpus = CorpusConfig(kind="text", language="ru", files=[str(path)])
    path.write_bytes(gzip.compress("дом\nлес\n".encode()))
    assert texts(found(corpus, tmp_path, ["ru"])) == {"ru": ["дом", "лес"]}
    path.write_bytes(gzip.compress("река".encode("cp1251")))
    with pytest.raises(UserError, match=r"not UTF-8 .*texts.gz, line 1\)"):
        texts(found(corpus, tmp_path, ["ru"]))
    path.write_bytes(gzip.compress(b"x" * 99)[:-9])
    with pytest.raises(UserError, match=r"can't be unpacked.*texts.gz.*download it again"):
        texts(found(corpus, tmp_path, ["ru"]))
