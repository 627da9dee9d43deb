"""One dev score: a side's training logs the score that it gets as a merge candidate."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars
import pytest

from configs.schema import merging
from configs.schema.config import Config
from configs.schema.merging import MERGEKIT_METHODS, MergingConfig
from data.artefact import PairSet, read_dev_sets
from merging.blend import Blend
from merging.choose import METHODS, Choice, attention_of, dev_evaluator, lm_cocktail, scored_methods
from merging.lm_cocktail import cocktail_of, few_shot_examples
from merging.search import Candidate
from pipeline.chain import CHAIN
from pipeline.core.artefact import read_manifest
from pipeline.core.embedding import prompts_of
from pipeline.core.errors import UserError
from pipeline.stage import run_stage
from tests.merging.test_merge import config
from tests.support.planned_sets import prepared_run, rows
from tests.support.runs import read_csv, read_metrics
from training.dev_scores import DevScore

SETS = {
    "symmetric/pairs": rows(64, seed=1),
    "symmetric/scored": rows(64, seed=2, scored=True),
    "symmetric/small": rows(64, seed=3),
    "asymmetric/questions": rows(80, seed=4, negatives=2),
    "dev/pairs": rows(60, seed=11),
    "dev/scored": rows(60, seed=12, scored=True),
    "dev/small": rows(3, seed=13),  # too few for a batch, and thus for a dev loss
    "dev/questions": rows(60, seed=14, negatives=2),
}
for number, content in enumerate(SETS.values()):  # no text in two of them
    for row in content:
        row |= {name: f"{row[name]} {number}" for name in ("anchor", "positive")}
SIDES = ("symmetric", "asymmetric", "joint")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with its sides trained, and merged."""
    config = prepared_run(tmp_path_factory.mktemp("trained"), SETS, max_steps=6, dev_steps=2, keep_best=False)
    config.training.dev_rows, config.training.dev_length = 40, 16
    config.merging = MergingConfig(models=["init", *SIDES], method="fixed", weights={"joint": 1.0}, compare=[])
    for stage in (*SIDES, "merge"):
        run_stage(CHAIN[stage], config)
    return config


def candidates(config: Config) -> dict[str, dict[str, str]]:
    return {row["origin"]: row for row in read_csv(config.folder("merge") / "search.csv")}


@pytest.mark.parametrize("side", SIDES)
def test_a_sides_last_dev_score_is_its_score_as_a_candidate(trained: Config, side: str) -> None:
    logged = [line for line in read_metrics(trained.folder(side)) if "dev_score" in line][-1]
    row = candidates(trained)[side]
    assert logged["step"] == 6
    assert float(row["dev" if side == "joint" else side]) == logged["dev_score"]
    sets = [name.removeprefix("dev/") for name in SETS if name.startswith("dev/") and f"dev_{name[4:]}_score" in logged]
    assert len(sets) == {"symmetric": 3, "asymmetric": 1, "joint": 4}[side]
    for name in sets:
        assert float(row[f"dev/{name}"]) == logged[f"dev_{name}_score"]
    manifest = read_manifest(trained.folder(side))
    assert manifest is not None and manifest.metrics["dev_score"] == logged["dev_score"]


def test_training_changes_the_score(trained: Config) -> None:
    found = candidates(trained)
    assert len({found[name]["dev"] for name in ("init", *SIDES)}) == 4


def test_sets_that_tell_no_models_apart_are_named(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = run_folder / "data/dev/answers.parquet"
    found = polars.read_parquet(path)  # every model finds a text by itself
    found.with_columns(found["anchor"].alias("positive")).write_parquet(path)
    run_stage(CHAIN["merge"], config(run_folder, method="fixed", weights={"init": 1.0}, compare=[]))
    lines = [record.getMessage() for record in caplog.records if "don't separate the models" in record.getMessage()]
    assert lines == ["merge: dev sets that don't separate the models, since all score at least 0.999: answers"]


def test_every_name_of_a_method_has_its_function() -> None:
    assert METHODS.keys() | set(MERGEKIT_METHODS) == {*merging.METHOD_NAMES}


def candidates_of(allows: Any, **merging: Any) -> dict[str, Candidate]:
    """The candidates of models and methods where more of model `one` scores higher."""

    def score(weights: dict[str, float], origin: str) -> Candidate:
        dev = DevScore({"symmetric": {"set": weights["one"]}}, {"set": 1})
        return Candidate(origin, weights, dev, {}, {}, allows(weights))

    settings = MergingConfig(**{"models": ["base", "one", "two"], "refinements": 0, **merging})
    scorer: Any = SimpleNamespace(score=score)
    blend: Any = SimpleNamespace(names=["base", "one", "two"])
    return scored_methods(Choice(Config(profile="tiny", run="run", merging=settings), {}, blend, [], scorer))


def test_methods_find_their_weights_and_an_unguarded_search_is_named(caplog: pytest.LogCaptureFixture) -> None:
    compare = ["uniform", "search", "extrapolated"]
    given: dict[str, Any] = {"method": "uniform", "compare": compare, "guard_sources": ["only"]}
    for extrapolate, weights in ((False, (0, 1, 0)), (True, (-1, 2, 0))):
        found = candidates_of(lambda _: None, extrapolate=extrapolate, extrapolation_limit=2.0, **given)
        assert [*found] == ["base", "one", "two", *compare]
        assert found["uniform"].weights == pytest.approx(dict.fromkeys(("base", "one", "two"), 1 / 3))
        assert tuple((found["search"].weights or {}).values()) == weights
    named = "merge: the search is hardly guarded: merging.guard_sources names 1 sets"
    assert caplog.messages.count(named) == 2
    caplog.clear()
    candidates_of(lambda _: None, **given | {"guard": None})
    candidates_of(lambda _: None, **given | {"guard_sources": ["one", "two"]})
    candidates_of(lambda _: None, **given | {"compare": ["uniform"]})
    assert named not in caplog.messages and not any("loses" in message for message in caplog.messages)


def test_a_search_refines_its_grid_as_often_as_configured() -> None:
    tried: dict[float, None] = {}
    given: dict[str, Any] = {"method": "search", "compare": [], "grid_step": 0.5, "refinements": 2}
    candidates_of(lambda weights: tried.update({weights["one"]: None}), **given)
    assert [*tried] == [0.0, 1.0, 0.5, 0.75, 0.875]


@pytest.mark.parametrize("extrapolate", [False, True])
def test_a_method_of_which_the_guard_allows_nothing_is_named_and_left_out(
    caplog: pytest.LogCaptureFixture, extrapolate: bool
) -> None:
    given: dict[str, Any] = {"method": "search", "compare": ["extrapolated"], "extrapolate": extrapolate}
    found = candidates_of(lambda weights: weights["base"] >= 0, **given)
    assert "extrapolated" not in found and [*(found["search"].weights or {}).values()] == [0, 1, 0]
    assert "merge: the guard allows no extrapolated candidate" in caplog.messages
    with pytest.raises(UserError, match="no search candidate to take"):
        candidates_of(lambda _: False, **given)
    assert candidates_of(lambda _: False, method="uniform", compare=[])["uniform"].allowed is False
    assert any(message.startswith("merge: uniform loses") for message in caplog.messages)


def test_lm_cocktail_has_the_configured_examples_temperature_and_length(models: dict[str, Path], data: Path) -> None:
    merging = MergingConfig(examples_per_set=3, negatives=2, temperature=0.1, batch_size=4)
    found = Config(profile="tiny", run="run", seed=3, merging=merging)
    found.training.dev_length = 5
    blend, sets = Blend(models), read_dev_sets(data)
    blend.model.prompts = {"query": "белый ", "document": "тихий "}
    scorer: Any = SimpleNamespace(score=lambda weights, origin: weights)
    weights: Any = lm_cocktail(Choice(found, models, blend, sets, scorer))
    prompts = {side: prompts_of(blend.model, side) for side in ("symmetric", "asymmetric")}
    assert len({str(prompt) for prompt in prompts.values()}) == 2 == len({pairs.side for pairs in sets})
    examples = few_shot_examples(sets, 3, 2, prompts, seed=3)
    assert weights == cocktail_of(blend, examples, 0.1, 4, max_length=5, seed=3).weights


def test_dev_rows_without_a_positive_pair_are_refused() -> None:
    model: Any = SimpleNamespace(prompts={}, default_prompt_name=None)
    blend: Any = SimpleNamespace(model=model, precision="fp32", token_budget=None)
    empty = PairSet("pairs", "symmetric", [], [], [], [])
    with pytest.raises(UserError, match="no dev set has a positive pair"):
        dev_evaluator(Config(profile="tiny", run="run"), [empty], blend)


def test_candidates_have_the_attention_that_the_longest_texts_of_the_merged_sides_were_trained_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = Config(profile="tiny", run="run")
    found.training.symmetric.anchor_length = found.training.symmetric.positive_length = 64
    for models, attention in ((["init", "symmetric"], "eager"), (["init", "symmetric", "asymmetric"], "sdpa")):
        found.merging.models = models
        assert attention_of(found) == attention
