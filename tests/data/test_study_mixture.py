"""The study's mixture on the real data next to this repository: no training row has a text of encodechka."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.runs import make

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished data stage of profile study."""
    runs = tmp_path_factory.mktemp("runs")
    make("profile=study", f"data.folder={shared_data}", f"runs={runs}", "stages=[data]")
    return runs / "study" / "data"


def texts_of(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)


def encodechka_texts(folder: Path) -> set[str]:
    """All texts in the files of the benchmark's test parts, as this test reads them."""
    found: set[str] = set()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            found |= set(texts_of(json.loads(path.read_text(encoding="utf-8"))["texts"]))
        elif path.suffix == ".csv" and "train" not in path.stem:
            with path.open(encoding="utf-8", newline="") as file:
                found |= {value for row in csv.DictReader(file) for value in row.values() if value}
    return {normalised(text) for text in found if " " in text.strip()}


def normalised(text: str) -> str:
    return " ".join(text.lower().split())


def test_no_text_of_encodechka_is_trained_on(shared_data: Path, data: Path) -> None:
    forbidden = encodechka_texts(shared_data / "encodechka")
    assert len(forbidden) > 20_000
    files = [*data.glob("symmetric/*.parquet"), *data.glob("asymmetric/*.parquet")]
    assert len(files) == 9
    for file in files:
        table = pq.read_table(file, columns=["anchor", "positive", "negatives"]).to_pylist()
        trained = {normalised(text) for row in table for text in texts_of(list(row.values()))}
        assert not trained & forbidden, file.name


def test_held_out_texts_are_in_no_training_row(data: Path) -> None:
    held_out = {
        text
        for file in data.glob("heldout/*.parquet")
        for column in pq.read_table(file, columns=["anchor", "positive"]).to_pydict().values()
        for text in column
    }
    for file in [*data.glob("symmetric/*.parquet"), *data.glob("asymmetric/*.parquet")]:
        rows = pq.read_table(file, columns=["anchor", "positive"]).to_pylist()
        assert not held_out & {text for row in rows for text in row.values()}, file.name
