"""`make check` on local files: every source is checked, every failure shown."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.schema.data import SourceConfig
from data.sources.files import NotSupplied
from pipeline.check import check, check_auxiliary_models, check_machine, disk, grouped, look, processor
from pipeline.core.errors import UserError
from pipeline.core.machine import cores
from tests.support.prepared_data import composed, run_config
from tests.support.runs import REPOSITORY

MIRROR = str(REPOSITORY / "data" / "samples")


def test_every_bundled_set_passes() -> None:
    for name, source in composed("data=card").data.sources.items():
        seen = look(f"data.sources.{name}", source, MIRROR)
        assert seen.problem is None, name
        assert seen.bytes and seen.revision.startswith("mirror of") and seen.first_rows.endswith("rows read")


def test_a_set_that_must_be_supplied_is_a_failure_only_if_held_out(tmp_path: Path) -> None:
    config = composed("+source@data.held_out.mednli=mednli")
    mednli = config.data.held_out["mednli"]
    config.mirror, config.data.held_out = str(tmp_path), {"mednli": mednli}
    with pytest.raises(NotSupplied) as error:
        run_config(config, tmp_path / "runs")
    held_out, training = (look(f"data.{part}.mednli", mednli, str(tmp_path)) for part in ("held_out", "sources"))
    assert held_out.problem and held_out.problem.line == error.value.line
    assert training.problem is None and "will be skipped" in training.first_rows


def test_a_set_without_rows_is_found(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer,split\n", encoding="utf-8")
    mine = composed("profile=own").data.sources["questions"]
    mine.path, mine.files, mine.format = str(tmp_path / "rows.csv"), [], "csv"
    seen = look("data.sources.questions", mine, None)
    assert seen.problem and seen.problem.what == "questions: the set is empty"


def test_a_set_whose_first_rows_are_another_set_s_is_not_a_failure(tmp_path: Path) -> None:
    lines = [f'{{"question": "{"вопрос " * 20}", "answer": "ответ", "split": "train"}}'] * 2500
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, lines[0].replace("train", "test")]), encoding="utf-8")
    mine = composed("profile=own").data.held_out["test_questions"]
    mine.path, mine.files = str(tmp_path / "rows.jsonl"), []
    seen = look("data.sources.test_questions", mine, None)
    assert mine.where == {"split": ["test"]} and seen.first_rows == "0 rows read" and seen.problem is None


def test_bad_rows_are_failures_unless_they_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "вопрос", "a": null}\n{"q": "вопрос", "a": "ответ"}', encoding="utf-8")
    config, columns = composed(), {"anchor": "q", "positive": "a"}
    mine = SourceConfig("Mine", "asymmetric", path=str(tmp_path / "rows.jsonl"), format="jsonl", columns=columns)
    config.data.sources, config.data.held_out, config.stages = {"mine": mine}, {}, []
    with pytest.raises(UserError, match=r"\(mine: null in column a\)"):
        check(config)
    config.data.on_bad_row = "skip"
    check(config)


def test_all_failures_are_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    config = composed("data.sources.terra.columns.label=gold", "data.sources.gazeta.files=[none.jsonl]")
    config.data.sources["ru_hnp"].dev_files = ["none.parquet"]
    failed = "terra: no column gold; ru_hnp: no file none.parquet; gazeta: no file none.jsonl"
    with pytest.raises(UserError, match=rf"3 of 12 checks failed \({failed}\)"):
        check(config)
    shown = capsys.readouterr().out
    assert "FAILED" in shown and "columns found: premise: string" in " ".join(shown.split())


def test_sets_that_fail_for_one_reason_share_a_row() -> None:
    offline = [UserError(f"{name}: no network", where=f"a/{name}", remedy="wait") for name in ("terra", "rcb")]
    other = UserError("too little memory", where="here", remedy="wait")
    gone = UserError("rcb: no network", where="a/rcb", remedy="correct it")
    assert [*grouped([offline[0], other, offline[1], gone])] == [
        ("terra, rcb: no network", "", "wait"),
        ("too little memory", "here", "wait"),
        ("rcb: no network", "a/rcb", "correct it"),
    ]


def test_training_that_needs_too_much_memory_is_found_before_anything_is_made() -> None:
    config = composed("profile=demo")
    ((found, problem),) = ((found, problem) for what, found, problem in check_machine(config, 0) if what == "memory")
    assert re.fullmatch(r"\w+ takes \d+\.\d to \d+\.\d GB, \d+\.\d GB here", found) and problem is None
    config.training.asymmetric.batch_size = config.training.asymmetric.mini_batch_tokens = 10**8
    problems = {what: problem for what, _, problem in check_machine(config, 0)}
    assert problems["memory"] and "mini_batch_tokens" in problems["memory"].line


def test_a_disk_that_checkpoints_would_fill_is_found_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("profile=bge_m3_ours")
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=20 * 10**9))
    _, found, problem = disk(config, 10**9)
    assert found == "20.0 GB free, sources 1.0 GB, models 7.2 GB, vectors 5.2 GB, checkpoints 12.9 GB"
    assert problem and problem.what == f"20.0 GB free, about 29.3 GB needed ({found.partition(', ')[2]})"
    config.stages = ["data", "report"]
    assert disk(config, 10**9)[1:] == ("20.0 GB free, sources 1.0 GB, vectors 5.2 GB", None)


def test_the_machine_is_looked_at_although_the_package_for_adapters_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    config = composed("training.asymmetric.adapter={rank: 4, alpha: 8}")
    found = {what: found for what, found, _ in check_machine(config, 0)}
    assert found["memory"] == "not known: an adapter needs the package peft"


def test_machines_that_can_t_split_a_batch_are_found_before_anything_is_made() -> None:
    found = {what: problem for what, _, problem in check_machine(composed("launch.nodes=3"), 0)}
    for name in ("symmetric", "asymmetric", "heads"):
        error = found[f"batches of {name}"]
        assert error and error.what == f"training.{name}.batch_multiple must be a multiple of the 3 processes, not 8"
    assert not [problem for _, _, problem in check_machine(composed("launch.processes=4"), 0) if problem]


def test_more_processes_than_gpus_are_found_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: "H100")
    monkeypatch.setattr("torch.cuda.get_arch_list", list)  # a CUDA build would ask the GPUs what they are
    found = {what: problem for what, _, problem in check_machine(composed("launch.processes=8"), 0)}
    assert found["devices"] and found["devices"].what == "8 processes, but 4 GPUs"
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_80"])
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda number: ((8, 0), (7, 5))[number])
    found = {what: problem for what, _, problem in check_machine(composed("launch.processes=2"), 0)}
    assert found["devices"] and found["devices"].what == "torch has no kernels for H100 (sm_75), only sm_80"


def test_a_busy_processor_is_named_with_a_remedy() -> None:
    assert f" {cores()}.0 of {cores()} cores busy: OMP_WAIT_POLICY=passive" in processor(1e3, {})
    assert processor(1.5, {"OMP_WAIT_POLICY": "passive"}) == processor(0.1, {}) == "CPU only"


def test_a_missing_base_is_found_before_anything_is_made(tmp_path: Path) -> None:
    config = composed("base=e5_small", f"base.hub={tmp_path / 'nowhere'}")
    ((found, problem),) = [row[1:] for row in check_auxiliary_models(config)]
    assert found == "FAILED" and problem and problem.what == "base.hub: neither a folder nor a Hub id"
