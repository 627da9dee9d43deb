"""The benchmark for GPUs: it runs at a small shape on a CPU, and without a GPU it says so."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import main, measured


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    main()
    assert capsys.readouterr().out == "nothing to measure: no GPU is here\n"


@pytest.mark.slow
def test_it_runs_at_a_small_shape(tmp_path: Path) -> None:
    rows = {row["key"]: row for row in measured(tmp_path, "small")}
    for kind in ("symmetric", "asymmetric"):
        for key in ("pairs_per_second_vs_sentence_transformers", "share_of_peak", "time_vs_bare_step", "memory_gb"):
            assert f"gpu_{key}_{kind}" in rows
        loss = rows[f"gpu_loss_{kind}"]
        assert loss["ours"] == pytest.approx(loss["theirs"], rel=0.02)  # of packed and padded texts
    assert rows["gpu_texts_per_second_vs_sentence_transformers"]["ours"] > 0
