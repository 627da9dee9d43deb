"""`make plan`, as a command."""

import socket
from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub import constants

from tests.support.runs import run_main


def test_the_command_prints_its_assumptions_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, module = ["profile=bge_m3", f"runs={tmp_path}"], "pipeline.plan"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=AssertionError("it needs no network")))
    done = run_main(*settings, "training.teraflops=200", module=module)
    assert done.status == 0, done.err
    texts = ("assumed sizes", "hours at 200 TFLOP/s", "padding share", "activations", "357,977,088", "Assumptions:")
    for text in texts:
        assert text in done.out
    seen, assumed = (line.split() for line in done.out.splitlines() if line.split()[:1] == ["ru_hnp"])
    assert seen == ["ru_hnp", "symmetric", "244", "54.7%", "500,494", "100,000", "5.0"]
    assert assumed == ["ru_hnp", "symmetric", "500,000", "18", "18", "18"]
    (row,) = (line.split() for line in done.out.splitlines() if line.split()[:1] == ["card_30"])
    assert int(row[1].replace(",", "")) > 800_000 and float(row[3]) > 0.1  # texts, tokens, hours
    refused = run_main(*settings, "training.teraflops=0", module=module)
    assert refused.status == 2
    assert refused.err.startswith("error: ") and refused.err.count("\n") == 1


def test_memory_is_marked_as_excluding_jointly_trained_heads(tmp_path: Path) -> None:
    settings = ["profile=tiny", f"runs={tmp_path}", "training.teraflops=200", "stages=[asymmetric]", "heads=joint"]
    shown = " ".join(run_main(*settings, module="pipeline.plan").out.split())
    assert "without what jointly trained heads hold" in shown  # of 1,024 rows of bge-m3 it is tens of gigabytes
