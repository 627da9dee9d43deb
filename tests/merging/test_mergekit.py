"""mergekit's methods in the same table as ours."""

import importlib.util
import json
from pathlib import Path

import pytest

from configs.schema.merging import MERGEKIT_METHODS
from merging.mergekit import mergekit_merge
from pipeline.chain import CHAIN
from pipeline.core.errors import UserError
from pipeline.stage import run_stage
from tests.merging.test_merge import config

installed = pytest.mark.skipif(not importlib.util.find_spec("mergekit"), reason="the extra 'merge' is not installed")


@pytest.mark.skipif(importlib.util.find_spec("mergekit") is not None, reason="mergekit is installed")
def test_without_mergekit_the_error_says_what_to_install(run_folder: Path) -> None:
    with pytest.raises(UserError, match="ties needs mergekit"):
        run_stage(CHAIN["merge"], config(run_folder, method="ties", compare=[]))
    assert not list((run_folder / "merge").glob("model*"))


@installed
def test_every_method_is_scored_next_to_ours_and_the_chosen_one_is_written(run_folder: Path) -> None:
    from safetensors.torch import load_file

    run_stage(CHAIN["merge"], config(run_folder, method="ties", compare=list(MERGEKIT_METHODS)))
    findings = json.loads((run_folder / "merge/weights.json").read_text(encoding="utf-8"))
    assert set(MERGEKIT_METHODS) <= set(findings["compared"])
    assert findings["weights"] is None
    models = {"init": run_folder / "init"}
    models |= {name: run_folder / name / "model" for name in ("symmetric", "asymmetric")}
    expected = mergekit_merge(models, "ties", {}, seed=42)[0].model.state_dict()
    written = load_file(run_folder / "merge/model/model.safetensors")
    assert all(written[name].equal(expected[name]) for name in written)


@installed
def test_random_methods_follow_the_seed(models: dict[str, Path]) -> None:
    def numbers(seed: int) -> list[float]:
        merged = mergekit_merge(models, "dare_linear", {"dare_linear": {"density": 0.5}}, seed)
        return merged[0].model.embeddings.word_embeddings.weight.flatten()[:64].tolist()

    assert numbers(1) == numbers(1) != numbers(2)


@installed
def test_a_parameter_that_the_method_lacks_is_one_line(models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="mergekit refuses ties"):
        mergekit_merge(models, "ties", {"ties": {"denseness": 0.5}}, seed=1)
