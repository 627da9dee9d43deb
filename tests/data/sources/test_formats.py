"""The same rows from every format, in batches of any size."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema.data import SourceConfig
from data.sources.batch import Batch, RowErrors
from data.sources.files import SourceFile, locate
from data.sources.formats import batches
from data.sources.rows import role_frames
from pipeline.core.errors import UserError

ROWS = [
    {"id": n, "title": f"Заголовок «{n}», с запятой", "text": f'Строка {n}\nвторая "строка"', "more": "x"}
    for n in range(1, 40)
]
WANTED = [(row["title"], row["text"]) for row in ROWS]
MINE = "data.sources.mine"


def read(file: SourceFile, format: str, columns: list[str], skip: bool = False) -> Iterator[Batch]:
    return batches(file, columns, RowErrors(MINE, skip), SourceConfig(format=format))


def json_lines() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write_all(folder: Path) -> dict[str, tuple[SourceFile, str]]:
    """Name -> (file, format) of the same rows."""
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet", row_group_size=7)
    (folder / "a.jsonl").write_bytes(json_lines().rstrip(b"\n"))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(json_lines()))
    (folder / "a.json").write_text("\ufeff\n" + json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")
    with (folder / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        rows = csv.DictWriter(file, ROWS[0].keys())
        rows.writeheader()
        rows.writerows(ROWS)
    with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
        for name, content in {
            "set/other.jsonl": b'{"title": "no", "text": "no"}\n',
            "set/a_ru.jsonl": json_lines(),
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    kinds = {
        "a.parquet": "parquet",
        "a.jsonl": "jsonl",
        "a.jsonl.gz": "jsonl",
        "a.json": "json",
        "a.csv": "csv",
        "a.tar.gz": "jsonl",
    }
    members = {"a.tar.gz": "*_ru.jsonl"}
    return {name: (SourceFile(folder / name, name, members.get(name)), kind) for name, kind in kinds.items()}


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.tar.gz"])
@pytest.mark.parametrize("block", [300, 2**24])
def test_every_format_yields_the_same_rows(
    name: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.sources.formats.BATCH_BYTES", block)
    file, kind = write_all(tmp_path)[name]
    found, numbers = [], []
    for batch in read(file, kind, ["title", "text"]):
        numbers.append(list(batch.numbers))
        found += [(row["title"], row["text"]) for row in batch.table.to_pylist()]
    assert found == WANTED
    assert [number for some in numbers for number in some] == list(range(1, len(ROWS) + 1))
    assert block > 300 or len(numbers) > 1 or name == "a.json"


def test_lists_and_texts_may_share_a_line_of_json(tmp_path: Path) -> None:
    rows = [{"query": "q1", "pos": None, "neg": []}, {"query": "q2", "pos": ["p"], "neg": ["n", "m"]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read(SourceFile(path, "a.jsonl"), "jsonl", ["query", "pos", "neg"])
    assert [row for batch in found for row in batch.table.to_pylist()] == rows


def test_a_pattern_of_columns_selects_all_that_match(tmp_path: Path) -> None:
    row = {"anchor": "a", "positive": "p", "negative_1": "n1", "negative_2": None, "negative_3": "n3"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    columns = {"anchor": "anchor", "positive": "positive", "negative": "negative_*"}
    source = SourceConfig(
        title="x", side="asymmetric", path=str(tmp_path / "a.parquet"), construction="triplets", columns=columns
    )
    [frame] = role_frames(source, locate(MINE, source, None), RowErrors(MINE))
    assert frame["negative"].to_list() == [["n1", "n3"]]


def test_a_local_folder_or_pattern_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps({"question": name, "answer": "x"}))
    for path in (str(tmp_path), f"{tmp_path}/*.jsonl"):
        source = SourceConfig(title="x", side="asymmetric", path=path, format="jsonl")
        assert [file.name for file in locate(MINE, source, None).files] == ["a.jsonl", "b.jsonl"]


def test_files_of_one_name_in_several_folders_have_different_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("2024", "2025"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_bytes(json_lines())
    monkeypatch.chdir(tmp_path)
    for path, names in {
        f"{tmp_path}/*/train.jsonl": ["2024/train.jsonl", "2025/train.jsonl"],
        "*/train.jsonl": ["2024/train.jsonl", "2025/train.jsonl"],
        "2024/*.jsonl": ["train.jsonl"],
    }.items():
        source = SourceConfig(title="x", side="asymmetric", path=path, format="jsonl")
        assert [file.name for file in locate(MINE, source, None).files] == names


def test_a_file_that_two_patterns_match_is_read_once(tmp_path: Path) -> None:
    for name in ("a-1.jsonl", "a-2.jsonl", "b-1.jsonl"):
        (tmp_path / name).write_bytes(json_lines())
    patterns = ["a-*.jsonl", "*-1.jsonl"]
    mirrored = SourceConfig("x", "symmetric", hub=tmp_path.name, files=patterns)
    local = SourceConfig("x", "symmetric", path="x", dev_files=[f"{tmp_path}/{pattern}" for pattern in patterns])
    for source, dev in ((mirrored, False), (local, True)):
        found = locate(MINE, source, str(tmp_path.parent), dev=dev).files
        assert [file.name for file in found] == ["a-1.jsonl", "a-2.jsonl", "b-1.jsonl"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_one_column_of_negatives_may_hold_texts_of_either_type_of_arrow(kind: pa.DataType, tmp_path: Path) -> None:
    columns = {"anchor": ["a", "b"], "positive": ["p", "q"], "negative": ["n", None]}
    pq.write_table(pa.table(columns, pa.schema([(name, kind) for name in columns])), tmp_path / "a.parquet")
    assert negatives_of(tmp_path / "a.parquet") == [["n"], []]


def test_a_row_without_a_list_of_negatives_has_none(tmp_path: Path) -> None:
    lists = pa.array([["n", "m"], None, []], pa.list_(pa.string()))
    pq.write_table(pa.table({"anchor": ["a"] * 3, "positive": ["p"] * 3, "negative": lists}), tmp_path / "a.parquet")
    assert negatives_of(tmp_path / "a.parquet") == [["n", "m"], [], []]


def negatives_of(path: Path) -> list[list[str]]:
    columns = {role: role for role in ("anchor", "positive", "negative")}
    source = SourceConfig("x", "symmetric", path=str(path), construction="triplets", columns=columns)
    frames = role_frames(source, locate(MINE, source, None), RowErrors(MINE))
    return [row for frame in frames for row in frame["negative"].to_list()]


HIDDEN = [".hidden.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "b/.cache/a.jsonl", "__MACOSX/a.jsonl", "a.jsonl~"]


def test_hidden_files_and_copies_of_a_folder_are_not_data(tmp_path: Path) -> None:
    for name in (*HIDDEN, "b/a.jsonl", "a.jsonl"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(json_lines())
    local = SourceConfig(title="x", side="asymmetric", path=str(tmp_path / "set"), format="jsonl")
    mirrored = SourceConfig(title="x", side="asymmetric", hub="set", files=["*.jsonl"], format="jsonl")
    for source in (local, mirrored):
        assert [file.name for file in locate(MINE, source, str(tmp_path)).files] == ["a.jsonl", "b/a.jsonl"]
    named = SourceConfig(title="x", side="asymmetric", hub="set", files=[HIDDEN[0]], format="jsonl")
    assert [file.name for file in locate(MINE, named, str(tmp_path)).files] == HIDDEN[:1]


def test_files_of_linked_folders_are_read_once(tmp_path: Path) -> None:
    for name in ("set/2025/a.jsonl", "elsewhere/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(json_lines())
    for link, target in {"latest": "2025", "of another disk": tmp_path / "elsewhere", "round": "."}.items():
        (tmp_path / "set" / link).symlink_to(target)
    for path in (f"{tmp_path}/set", f"{tmp_path}/set/**"):
        source = SourceConfig(title="x", side="asymmetric", path=path, format="jsonl")
        assert [file.path.name for file in locate(MINE, source, None).files] == ["a.jsonl", "b.jsonl"]
    mirrored = SourceConfig(title="x", side="asymmetric", hub="set", files=["latest/a.jsonl"], format="jsonl")
    assert [file.name for file in locate(MINE, mirrored, str(tmp_path)).files] == ["latest/a.jsonl"]


@pytest.mark.parametrize("name", ["rows[1].jsonl", "rows*.jsonl", "строки?.jsonl"])
def test_a_path_is_a_name_first_and_a_pattern_second(name: str, tmp_path: Path) -> None:
    for other in (name, name.translate(str.maketrans("[*?", "111", "]"))):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / other).write_bytes(json_lines())
    local = SourceConfig(title="x", side="asymmetric", path=str(tmp_path / "set" / name), format="jsonl")
    mirrored = SourceConfig(title="x", side="asymmetric", hub="set", files=[name], format="jsonl")
    for source in (local, mirrored):
        assert [file.name for file in locate(MINE, source, str(tmp_path)).files] == [name]


def test_a_column_is_a_name_first_and_a_pattern_second(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text [ru]": ["да"], "text r": ["нет"], "n*": ["раз"], "n1": ["два"]}), tmp_path / "a.parquet"
    )
    columns = ["text [ru]", "n*"]
    [batch] = read(SourceFile(tmp_path / "a.parquet", "a"), "parquet", columns)
    assert batch.table.to_pylist() == [{"text [ru]": "да", "n*": "раз"}]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
OTHER_KINDS = {
    "git-lfs pointer": POINTER,
    "set data.sources.mine.format to parquet": b"PAR1\x15\x04\x15",
    "rename it to end in .gz": gzip.compress(POINTER),
    "compressed with bzip2": b"BZh91AY&SY",
    "zip archive": b"PK\x03\x04\x14\x00",
    "set data.sources.mine.encoding to utf-16": "вопрос".encode("utf-16"),
    "a web page": b"<!DOCTYPE html>\n<html>",
}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("message", OTHER_KINDS)
def test_a_file_that_is_something_else_is_called_that(message: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OTHER_KINDS[message])
    with pytest.raises(UserError, match=message):
        list(read(SourceFile(tmp_path / "a", "a"), kind, ["title"], skip=True))


@pytest.mark.parametrize(
    ("name", "kind", "member"),
    [("a.parquet", "parquet", None), ("a.jsonl.gz", "jsonl", None), ("a.tar.gz", "jsonl", "*")],
)
def test_a_git_lfs_pointer_instead_of_a_binary_file_is_called_one(
    name: str, kind: str, member: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=r"mine: it is a git-lfs pointer and not the file \(.*\); .*git lfs pull"):
        list(read(SourceFile(tmp_path / name, name, member), kind, ["title"]))


def archive(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "end", [0.3, 1.0, 1.5, 2.0], ids=["in a member", "between members", "in the second", "before the mark"]
)
@pytest.mark.parametrize("skip", [False, True])
def test_an_archive_that_is_cut_off_anywhere_says_so(end: float, packed: bool, skip: bool, tmp_path: Path) -> None:
    content = archive(("a.jsonl", json_lines()), ("._a.jsonl", b"\0"), ("b.jsonl", json_lines()))
    member = 512 + -(-len(json_lines()) // 512) * 512
    cut = content[: int(end * member) + 1024 * (end > 1)]
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    for whole, text in ((True, content), (False, cut)):
        path.write_bytes(gzip.compress(text) if packed else text)
        found = read(SourceFile(path, path.name, "*.jsonl"), "jsonl", ["title"], skip)
        if whole:
            assert sum(batch.table.num_rows for batch in found) == 2 * len(ROWS)
            continue
        with pytest.raises(UserError, match=r"cut off|unexpected end"):
            list(found)


def test_a_checksum_after_an_archive_is_compared(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(archive(("a.jsonl", json_lines()))))
    content[-6] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match="CRC check failed"):
        list(read(SourceFile(tmp_path / "a.tar.gz", "a.tar.gz", "*"), "jsonl", ["title"]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoding", "cp12510", "must be one that Python knows"),
        ("encoding", "base64", "must be one that Python knows"),
        ("delimiter", ";;", "must be one character or tab"),
        ("delimiter", '"', "must be one character or tab"),
    ],
)
def test_impossible_settings_of_a_text_file_are_refused(key: str, value: str, message: str) -> None:
    source = SourceConfig(title="x", side="symmetric", path="x")
    setattr(source, key, value)
    assert [(name, message in problem) for name, problem in source.problems()] == [(key, True)]


def test_a_parquet_file_has_all_rows_of_its_footer_or_is_refused(tmp_path: Path) -> None:
    file, count, refused = io.BytesIO(), 37, 0
    pq.write_table(pa.table({"title": [f"вопрос {n}" for n in range(count)]}), file)
    content, path = file.getvalue(), tmp_path / "a.parquet"
    written, forged = (
        bytes([0x16, 2 * count]),
        bytes([0x16, 2 * 30]),
    )  # thrift: a field of 64 bits, and 30 for its value
    for place in range(len(content)):
        if content.startswith(written, place):
            path.write_bytes(content[:place] + forged + content[place + 2 :])
            found = read(SourceFile(path, "a.parquet"), "parquet", ["title"], skip=True)
            try:
                assert sum(batch.table.num_rows for batch in found) == count
            except UserError as error:
                assert "30" in error.line and "37" in error.line and "in its footer (a.parquet)" in error.line
                refused += 1
    assert refused == 2  # the numbers of the file and of its row group
