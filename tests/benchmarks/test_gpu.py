"""The GPU benchmark: it runs at a small shape on a CPU, and says so without a GPU."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import MOST, main, measured, require_same, require_same_loss, rows_of
from pipeline.core.errors import UserError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    main()
    assert capsys.readouterr().out == "nothing to measure: there is no GPU\n"


def test_a_side_that_failed_has_no_rows_and_a_loss_that_differs_from_the_padded_one_is_an_error() -> None:
    packed = {"per_second": 540.0, "teraflops": 360.0, "gigabytes": 60.0, "loss": 2.0}
    medians = {"symmetric packed": packed, "symmetric padded": {**packed, "per_second": 270.0, "loss": 2.01}}
    rows = rows_of("symmetric", medians, peak=800.0)
    ratios = {row["key"]: row["ratio"] for row in rows}
    padded = "gpu_pairs_per_second_vs_padded_symmetric"
    assert ratios == {padded: 2, "gpu_share_of_peak_symmetric": 0.45, "gpu_loss_symmetric": pytest.approx(2 / 2.01)}
    require_same_loss(rows)
    medians["symmetric padded"]["loss"] = 2.1
    with pytest.raises(UserError, match=r"the loss of packed texts is 2, of padded ones 2\.1"):
        require_same_loss(rows_of("symmetric", medians, peak=800.0))
    assert not rows_of("asymmetric", medians, peak=800.0)


def test_sides_that_fail_or_hang_cost_no_other_side_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]

    def run(function: str, timeout: float, **arguments: Any) -> dict[str, float]:
        if function == "same":
            raise RuntimeError("same failed: the kernel is missing")
        if arguments.get("packed") and Path(arguments["data"]).name == "asymmetric":  # hangs
            clock[0] += timeout
            raise subprocess.TimeoutExpired("python", timeout)
        clock[0] += 20
        return {"per_second": 100.0, "teraflops": 50.0, "gigabytes": 10.0, "loss": 2.0}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "write_inputs", lambda *_: tmp_path)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    rows, checks = measured(tmp_path, "gpu")
    keys = {row["key"] for row in rows}
    symmetric = ("pairs_per_second_vs_sentence_transformers", "time_vs_bare_step", "memory_gb", "loss")
    assert keys >= {"gpu_texts_per_second_vs_sentence_transformers", *(f"gpu_{key}_symmetric" for key in symmetric)}
    assert not [key for key in keys if key.endswith("_asymmetric") or "peak" in key]
    assert clock[0] <= 60 * gpu.MINUTES
    printed = capsys.readouterr().out
    assert "the kernel is missing" in printed and f"timed out after {MOST} seconds" in printed
    assert "symmetric packed: per_second 100" in printed
    with pytest.raises(UserError, match="could not be compared"):
        require_same(checks)


@pytest.mark.slow
def test_it_runs_at_a_small_shape(tmp_path: Path) -> None:
    found, checks = measured(tmp_path, "small")
    require_same(checks)
    rows = {row["key"]: row for row in found}
    for kind in ("symmetric", "asymmetric"):
        for key in ("pairs_per_second_vs_sentence_transformers", "share_of_peak", "time_vs_bare_step", "memory_gb"):
            assert f"gpu_{key}_{kind}" in rows
        loss = rows[f"gpu_loss_{kind}"]
        assert loss["ours"] == pytest.approx(loss["theirs"], rel=0.02)  # of packed and padded texts
    assert rows["gpu_texts_per_second_vs_sentence_transformers"]["ours"] > 0
