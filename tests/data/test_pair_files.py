"""The data stage's files of pairs: written pairs are read back, and a file in another layout is refused."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data.pair_files import PairWriter, read_frames, read_pairs
from pipeline.core.errors import UserError

ROWS: dict[str, list[Any]] = {
    "anchor": ["Когда замерзает река?", "Что такое маяк?"],
    "positive": ["Лёд встаёт в ноябре.", "Башня с огнём."],
    "negatives": [["Рецепт борща", "Музей закрыт"], []],
}


@pytest.mark.parametrize("scores", [None, [0.25, None]])
def test_pairs_are_read_as_they_were_written_with_scores_in_any_case(tmp_path: Path, scores: list | None) -> None:
    rows = ROWS | ({} if scores is None else {"score": scores})
    with PairWriter(tmp_path / "pairs.parquet", scored=scores is not None) as file:
        file.write(pl.DataFrame(rows))
    assert read_pairs(tmp_path / "pairs.parquet").to_pydict() == ROWS | {"score": scores or [None, None]}


def test_rows_of_many_bytes_are_written_and_read_a_group_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.pair_files.GROUP_BYTES", 1)  # Arrow can't have 2 GiB of texts in one column
    with PairWriter(tmp_path / "pairs.parquet", scored=False) as file:
        file.write(pl.DataFrame(ROWS))
        file.write(pl.DataFrame(ROWS).clear())
    frames = list(read_frames(tmp_path / "pairs.parquet"))
    assert [len(frame) for frame in frames] == [1, 1]
    assert pl.concat(frames).to_dict(as_series=False) == ROWS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": None}, "column anchor is missing"),
        ({"negatives": None}, "column negatives is missing"),
        ({"anchor": [1, 2]}, "column anchor holds int64, not text"),
        ({"negatives": ["а", "б"]}, "column negatives holds large_string, not text"),
        ({"positive": ["а", " "]}, "column positive has empty texts"),
        ({"positive": ["а", None]}, "column positive has empty texts"),
        ({"score": [1, 0]}, "column score doesn't hold floats"),
        ({"score": [1.0, float("nan")]}, "column score has values that are not finite"),
        ({"score": [float("inf"), None]}, "column score has values that are not finite"),
        ({name: [] for name in ROWS}, "column anchor holds null, not text"),
    ],
)
def test_another_layout_is_refused_by_what_differs(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = {name: values for name, values in (ROWS | change).items() if values is not None}
    pl.DataFrame(rows).write_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match=rf"{message} \(.*pairs.parquet\); run make data again"):
        read_pairs(tmp_path / "pairs.parquet")


def test_a_set_without_rows_or_of_other_bytes_is_refused(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "empty.parquet", scored=False):
        pass
    with pytest.raises(UserError, match="the set has no rows"):
        read_pairs(tmp_path / "empty.parquet")
    (tmp_path / "text.parquet").write_text("anchor,positive")
    with pytest.raises(UserError, match="not a parquet file"):
        read_pairs(tmp_path / "text.parquet")
