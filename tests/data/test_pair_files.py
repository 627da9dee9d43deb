"""The data stage's files of pairs: written pairs are read back, and a damaged file is refused."""

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


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("anchor,positive")
    with pytest.raises(UserError, match=r"not a parquet file \(.*text.parquet\); run make data again"):
        read_pairs(tmp_path / "text.parquet")
