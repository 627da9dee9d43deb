"""The README's walk-through with one's own data: its commands on the bundled rows, with a small random base."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.runs import REPOSITORY, read_csv, read_metrics, run_main

SMALL = ["base=tiny", "precision=fp32", "launch.config=none"]
SMALL += [f"training@training.{side}=[{side},tiny]" for side in ("symmetric", "asymmetric")]


def walk_through() -> list[tuple[str, list[str]]]:
    """Module and arguments of each command of the section, as make would start them."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Your own data")[2].partition("\n## ")[0]
    assert section.count("\n") <= 30
    found = []
    for command in re.findall(r"^    (make [^#\n]+)", section, re.MULTILINE):
        printed = subprocess.run(
            [*shlex.split(command), "-n"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        (started,) = (line for line in printed.stdout.splitlines() if "-m pipeline." in line)
        words = shlex.split(started)
        found.append((words[words.index("-m") + 1], words[words.index("-m") + 2 :]))
    return found


def test_the_commands_before_training_run_as_written(tmp_path: Path) -> None:
    *before, (module, _) = walk_through()
    assert [name for name, _ in before] == ["pipeline.settings", "pipeline.check", "pipeline.run", "pipeline.plan"]
    assert module == "pipeline.run"
    shown = {}
    for module, words in before:
        done = run_main(*words, *SMALL, f"runs={tmp_path}", module=module)
        assert done.status == 0, done.err
        shown[module] = done.out
    assert "data.mining.model: base" in shown["pipeline.check"]
    sets = {line["name"]: line for line in json.loads((tmp_path / "own/data/ledger.json").read_text())["sets"]}
    questions, scored, held_out = sets["questions"], sets["scored"], sets["test_questions"]
    assert (questions["raw"], held_out["train"], scored["kept"]) == (48, 8, 48)
    assert questions["negatives"] > 30 and questions["dev"] > 0 and scored["dev"] > 0


@pytest.mark.slow
def test_the_whole_walk_through_ends_in_a_scored_merge(tmp_path: Path) -> None:
    module, words = walk_through()[-1]
    done = run_main(*words, *SMALL, f"runs={tmp_path}", module=module)
    assert done.status == 0, done.err
    scores = read_csv(tmp_path / "own/evaluate/scores.csv")
    models = {row["model"] for row in scores if row["task"] == "test_questions"}
    assert {"base", "init", "symmetric", "asymmetric", "merge", "merge.hybrid", "bm25"} <= models
    curves = read_metrics(tmp_path / "own/symmetric")
    assert curves[0]["step"] == 0 and "dev_scored_score" in curves[0]
    assert (tmp_path / "own/report/index.html").is_file()
