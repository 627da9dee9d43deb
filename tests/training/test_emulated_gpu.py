"""The GPU's code path on an emulated GPU: what runs there, where its tensors are, and how often a step waits for it."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.core.artefact import read_manifest
from pipeline.core.model_folder import encoder_config
from tests.support import emulated_gpu
from tests.support.runs import read_metrics, remove_stage
from tests.support.zoo import OF_QWEN, animal

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="takes the place of CUDA in torch's CPU build"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated_gpu.build(tmp_path_factory.mktemp("emulated_gpu"))


def run(library: Path, run_folder: Path, stages: str, *overrides: str) -> dict[str, int]:
    """Make stages of the copied chain; returns how often training steps waited for the device."""
    where = [f"runs={run_folder.parent}", "run=tiny", "launch.config=none", f"stages=[{stages}]"]
    ended, waits = emulated_gpu.run(library, run_folder, "profile=tiny", *where, *overrides)
    assert ended.status == 0, ended.err
    return waits


def padding(stage: Path) -> float:
    manifest = read_manifest(stage)
    assert manifest is not None
    return float(manifest.metrics["padding_share"])


def test_a_step_on_packed_texts_waits_for_the_gpu_three_times_and_models_are_scored_there(
    library: Path, run_folder: Path
) -> None:
    settings = ["precision=bf16", "training.symmetric.logging_steps=100", "evaluation.chain=[base,merge]"]
    for stage in ("symmetric", "evaluate"):
        remove_stage(run_folder / stage)
    waits = run(library, run_folder, "symmetric,evaluate", *settings)  # one process, as half of its time is imports
    steps = 8
    assert {name: number for name, number in waits.items() if number > 1} == {
        "training/losses.py _own": steps,  # how many rows have a positive
        "training/losses.py angle_loss": steps,  # how many pairs of rows are in order
        "training/trainer.py _get_grad_norm": steps,  # whether loss and gradient are finite
    }
    assert padding(run_folder / "symmetric") == 0


@pytest.mark.slow
def test_two_ranks_train_on_their_own_gpus_as_one_process_does(tmp_path: Path, run_folder: Path) -> None:
    losses = [line["loss"] for line in read_metrics(run_folder / "symmetric") if "loss" in line]
    remove_stage(run_folder / "symmetric")
    where = ["profile=tiny", f"runs={run_folder.parent}", "run=tiny", "stages=[symmetric]"]
    ended = emulated_gpu.run_ranks(emulated_gpu.build(tmp_path, "-DRANKS"), *where, "precision=bf16")
    assert ended.status == 0, ended.err
    found = [line["loss"] for line in read_metrics(run_folder / "symmetric") if "loss" in line]
    assert found == pytest.approx(losses, rel=0.02)  # those of a CPU in 32 bit


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ModernBERT", "EuroBERT", "Qwen3"])
def test_another_family_is_packed_and_trains_as_on_a_cpu(name: str, library: Path, run_folder: Path) -> None:
    base = [f"base.name={name}", "base.kind=hub", f"base.hub={animal(name)}", "base.max_length=64", "init=full"]
    if name == "Qwen3":
        query = OF_QWEN["prompts"]["query"]
        base += [
            "base=qwen3_embedding_0_6b",
            f"base.prompts.query='{query}'",
            "heads=none",
        ]
    side, found = ["training.symmetric.anchor_length=64", "training.symmetric.positive_length=64"], []
    for precision in ("bf16", "fp32"):  # without packing in 32 bit
        run(library, run_folder, "init,symmetric", f"precision={precision}", *base, *side)
        assert encoder_config(run_folder / "symmetric/model")["model_type"] == name.lower()
        found.append([line["loss"] for line in read_metrics(run_folder / "symmetric") if "loss" in line])
        assert (padding(run_folder / "symmetric") == 0) == (precision == "bf16")
    assert found[0] == pytest.approx(found[1], rel=0.02)


@pytest.mark.slow
def test_every_training_runs_on_a_gpu(library: Path, run_folder: Path) -> None:
    run(library, run_folder, "symmetric,asymmetric,merge,heads,evaluate,report", "precision=bf16")
    assert [padding(run_folder / stage) for stage in ("symmetric", "asymmetric", "heads")] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["training.joint.mini_batch_tokens=64", "training.joint.dropout=0.1"],
        ["heads=joint", "training.joint.mini_batch_tokens=256"],
        ["training.joint.guide=init", "training.joint.teacher=self", "training.joint.dimensions=[32,16]"],
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_every_option_runs_on_a_gpu(library: Path, run_folder: Path, overrides: list[str], precision: str) -> None:
    run(library, run_folder, "joint", f"precision={precision}", *overrides)
