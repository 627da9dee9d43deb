"""The parts of a study that the README shows: its table and its picture."""

from pathlib import Path

from evaluation.study.comparison import ArmScore
from evaluation.study.picture import draw_differences
from evaluation.study.table import markdown

NAN = float("nan")


def row(arm: str, against: str, task: str, score: float, p: float = NAN) -> ArmScore:
    suite, metric = ("encodechka", "mean") if task == "Mean S" else ("held_out", "ndcg_at_10")
    return ArmScore(arm, against, suite, task, metric, 3, score, 0.001, score - 0.01, score + 0.01, p)


ROWS = [
    ArmScore("merge", "", "dev", "dev", "score", 3, 0.7123, 0.001, NAN, NAN, NAN),
    ArmScore("merge", "", "dev", "guards", "ndcg_at_10", 3, 0.012, 0.001, NAN, NAN, NAN),
    *(row(arm, "", task, 0.8) for arm in ("base", "merge") for task in ("Mean S", "news", "terms")),
    row("merge", "base", "Mean S", 0.0214, p=0.01),
    row("merge", "base", "news", -0.0031, p=0.2),
    row("merge", "base", "terms", 0.1, p=0.06),
]


def test_the_table_shows_differences_from_the_base_and_in_bold_those_that_are_certain() -> None:
    lines = markdown(ROWS).splitlines()
    assert lines[0] == "| arm | dev | guards | Mean S | news | terms |"
    assert lines[3] == "| merge | 0.712 | +0.012 | **+0.021** | −0.003 | +0.100 |"
    assert lines[2] == "| base | – | – | 0.800 | 0.800 | 0.800 |"


def test_the_picture_places_an_arm_by_its_mean_and_the_retrieval_set_that_it_loses_most(tmp_path: Path) -> None:
    draw_differences(tmp_path / "one.svg", ROWS)
    draw_differences(tmp_path / "two.svg", ROWS)
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    moved = [row if row.task != "terms" or not row.against else row_of_terms(row) for row in ROWS]
    draw_differences(tmp_path / "better.svg", moved)
    assert drawn == (tmp_path / "better.svg").read_bytes()  # terms gained more already: news is the worst


def row_of_terms(row: ArmScore) -> ArmScore:
    return ArmScore(**{**vars(row), "score": 0.2, "ci_low": 0.19, "ci_high": 0.21})


def test_without_a_mean_or_a_retrieval_set_there_is_no_picture(tmp_path: Path) -> None:
    draw_differences(tmp_path / "none.svg", [row for row in ROWS if row.task != "Mean S"])
    assert not (tmp_path / "none.svg").exists()


def test_names_of_arms_that_are_all_alike_are_stacked(tmp_path: Path) -> None:
    rows = [row(f"arm_{place}", "base", task, 0.01) for place in range(120) for task in ("Mean S", "news")]
    draw_differences(tmp_path / "many.svg", rows)
    assert (tmp_path / "many.svg").read_text(encoding="utf-8").count("<!-- arm ") == 120
