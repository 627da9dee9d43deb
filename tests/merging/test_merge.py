"""The stage: from complete artefacts to a merged model that loads everywhere, and one-line errors for users."""

import json
import shutil
from pathlib import Path

import pytest

from configs.schema.config import Config
from configs.schema.merging import MergingConfig
from pipeline.chain import CHAIN
from pipeline.core.errors import UserError
from pipeline.stage import run_stage
from tests.reliability.faults import number_at
from tests.support.runs import put, read_csv

GUARD = ["guard_one", "guard_two"]
TEXTS = ["белый кот 3", "тихий лес"]


def config(run: Path, **merging: object) -> Config:
    """A config of the run whose folder is given."""
    settings = MergingConfig(**{"guard_sources": GUARD, "guard": 0.05, "refinements": 0, "grid_step": 0.5} | merging)
    return Config(profile="tiny", run=run.name, runs=str(run.parent), precision="fp32", merging=settings)


@pytest.mark.parametrize("method", ["lm_cocktail", "fixed"])
def test_every_method_makes_a_model_of_its_weights(run_folder: Path, method: str) -> None:
    run_stage(
        CHAIN["merge"], config(run_folder, method=method, weights={"init": 0.2, "symmetric": 0.3, "asymmetric": 0.5})
    )
    require_model_of_weights(run_folder, method)


def require_model_of_weights(run_folder: Path, method: str) -> None:
    from safetensors.torch import load_file

    findings = json.loads((run_folder / "merge/weights.json").read_text())
    parents = {name: load_file(run_folder / name / "model/model.safetensors") for name in ("symmetric", "asymmetric")}
    parents["init"] = load_file(run_folder / "init/model.safetensors")
    merged = load_file(run_folder / "merge/model/model.safetensors")
    for name, tensor in merged.items():
        expected = sum(findings["weights"][parent] * parents[parent][name].double() for parent in parents)
        assert (tensor - expected).abs().max() < 1e-6
    assert findings["method"] == method
    assert sum(findings["weights"].values()) == pytest.approx(1)


def test_search_takes_the_best_candidate_that_the_guard_allows_and_the_same_run_ends_in_the_same_bytes(
    run_folder: Path,
) -> None:
    def outputs() -> dict[str, str]:
        manifest = run_stage(CHAIN["merge"], config(run_folder, method="search"))
        return {path: entry["sha256"] for path, entry in manifest.outputs.items()}

    first = outputs()
    require_model_of_weights(run_folder, "search")
    rows = read_csv(run_folder / "merge/search.csv")
    inside = [row for row in rows if row["origin"] in ("init", "symmetric", "asymmetric", "search")]
    best = max(float(row["dev"]) for row in inside if row["allowed"] == "True")
    taken = json.loads((run_folder / "merge/weights.json").read_text())["compared"]["search"]
    assert taken["dev"] == best
    assert taken["guard_loss"] <= 0.05 or taken["guard_loss_low"] <= 0
    assert (run_folder / "merge/simplex.svg").read_text(encoding="utf-8").startswith("<?xml")
    shutil.rmtree(run_folder / "merge")
    assert outputs() == first


def test_a_merge_without_scoring_needs_no_dev_rows(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "data/dev")
    run_stage(CHAIN["merge"], config(run_folder, method="fixed", weights={"init": 1.0}, compare=[], score=False))
    merged, base = (run_folder / folder / "model.safetensors" for folder in ("merge/model", "init"))
    assert merged.stat().st_size > 0
    assert json.loads((run_folder / "merge/weights.json").read_text())["weights"]["init"] == 1.0
    assert base.exists()


def test_extrapolated_weights_take_the_rest_from_the_base(run_folder: Path) -> None:
    weights = {"symmetric": 0.8, "asymmetric": 0.7}
    run_stage(CHAIN["merge"], config(run_folder, method="fixed", weights=weights, extrapolate=True, compare=[]))
    found = json.loads((run_folder / "merge/weights.json").read_text())["weights"]
    assert found == pytest.approx({"init": -0.5, **weights})


@pytest.mark.parametrize(("extrapolate", "weights"), [(True, {}), (False, {"init": 0.3})])
def test_weights_are_given_by_the_path_that_names_a_model(
    extrapolate: bool, weights: dict[str, float], run_folder: Path
) -> None:
    other = shutil.copytree(run_folder / "symmetric" / "model", run_folder.parent / "a" / "merge" / "model")
    given = {"models": ["init", str(other)], "weights": {str(other): 0.7} | weights, "extrapolate": extrapolate}
    run_stage(CHAIN["merge"], config(run_folder, method="fixed", compare=[], score=False, **given))
    found = json.loads((run_folder / "merge/weights.json").read_text())["weights"]
    assert found == pytest.approx({"init": 0.3, "a-merge": 0.7})


def no_dev_rows(run: Path) -> None:
    shutil.rmtree(run / "data/dev")


def dev_rows_that_are_trained_on(run: Path) -> None:
    shutil.copy(run / "data/dev/pairs.parquet", run / "data/symmetric/leaked.parquet")


def guard_set_that_is_trained_on(run: Path) -> None:
    shutil.copy(run / "data/heldout/guard_one.parquet", run / "data/asymmetric/guard_one.parquet")


def guard_set_that_is_missing(run: Path) -> None:
    (run / "data/heldout/guard_two.parquet").unlink()


def nan_in_a_model(run: Path) -> None:
    path = run / "symmetric/model/model.safetensors"
    put(path, number_at("embeddings.word_embeddings.weight", float("nan"))(path.read_bytes()))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_dev_rows, "no dev data"),
        (dev_rows_that_are_trained_on, "set pairs shares a text with training set leaked: '"),
        (guard_set_that_is_trained_on, "set guard_one shares a text with training set guard_one: '"),
        (guard_set_that_is_missing, "set guard_two is not held out"),
        (nan_in_a_model, "embeddings.word_embeddings.weight holds NaN"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_model(run_folder: Path, harm: object, message: str) -> None:
    assert callable(harm)
    harm(run_folder)
    with pytest.raises(UserError) as caught:
        run_stage(CHAIN["merge"], config(run_folder, method="search"))
    assert message in caught.value.line
    assert "\n" not in caught.value.line
    assert not list((run_folder / "merge").glob("model*"))
