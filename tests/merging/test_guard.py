"""The guard on a model that really forgot: overtrained on one narrow set, whose dev rows only show the gain."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars
import pytest

from configs.schema.config import Config
from configs.schema.data import SourceConfig
from configs.schema.merging import MergingConfig
from evaluation.outcome import Measure, Outcome
from evaluation.significance import Resampling, interval, replicates
from merging.choose import guard_evaluators, read_held_out_sets
from merging.search import Candidate, GuardLoss, allowed_by, paired_guard_loss
from pipeline.chain import CHAIN
from pipeline.core.artefact import Manifest, read_manifest
from pipeline.core.errors import UserError
from pipeline.stage import run_stage
from tests.merging.conftest import COLOURS, WORDS, make_model, perturb
from tests.support.planned_sets import tiny_model
from tests.support.runs import read_csv
from training.dev_scores import DevScore
from training.model_files import save_model

SCHEMA = {"anchor": polars.String, "positive": polars.String, "negatives": polars.List(polars.String)}
TRAINED, HELD_OUT = WORDS[:16], WORDS[16:]


def narrow_pair(colour: str, first: str, second: str) -> tuple[str, str]:
    """Texts of one colour belong together: a model that learns this ignores the other words."""
    return f"{colour} {first}", f"{colour} {second}"


def plain_pair(colour: str, word: str) -> tuple[str, str]:
    """Retrieval that the base can do: the same words in another order."""
    return f"{colour} {word}", f"{word} {colour}"


def train_hard(source: Path, target: Path) -> Path:
    """Contrastive training with a high learning rate on narrow pairs only, one of each colour per batch."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    model, random_numbers = SentenceTransformer(str(source), device="cpu"), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(80):
        pairs = [narrow_pair(colour, *random_numbers.choice(TRAINED, 2, replace=False)) for colour in COLOURS]
        sides = [model.preprocess([pair[place] for pair in pairs]) for place in (0, 1)]
        anchors, positives = (model(side)["sentence_embedding"] for side in sides)
        loss = torch.nn.functional.cross_entropy(anchors @ positives.T / 0.05, torch.arange(len(pairs)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(model, source, target)
    return target


@pytest.fixture(scope="module")
def forgetful_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose symmetric model learned a narrow set so hard that it forgot plain retrieval."""
    run = tmp_path_factory.mktemp("forgetful") / "run"
    base = make_model(run / "init", pooling="mean")
    train_hard(base, run / "symmetric/model")
    perturb(base, run / "asymmetric/model", 1, scale=1e-3)
    words = list(zip(HELD_OUT[::2], HELD_OUT[1::2], strict=True))
    sets = {
        **{
            f"symmetric/narrow_{i}": [narrow_pair(colour, *TRAINED[:2])]
            for i, colour in enumerate(COLOURS[: len(words)])
        },
        **{f"dev/narrow_{i}": [narrow_pair(colour, *pair) for colour in COLOURS] for i, pair in enumerate(words)},
        "heldout/one": [plain_pair(colour, word) for colour in COLOURS for word in TRAINED[2:9]],
        "heldout/two": [plain_pair(colour, word) for colour in COLOURS for word in TRAINED[9:16]],
    }
    for name, pairs in sets.items():
        path = run / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(anchor, positive, []) for anchor, positive in pairs]
        polars.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(path)
    for stage in ("init", "symmetric", "asymmetric", "data"):
        Manifest(stage, "complete", f"fingerprint of {stage}", {}, {}).write(run / stage)
    return run


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No merge here plots its search, which takes half a second and is tested elsewhere."""
    monkeypatch.setattr("merging.merge.draw_simplex", lambda target, *_: target.touch())


def merged(
    run: Path,
    copy: Path,
    guard: float | None,
    method: str = "search",
    sources: Sequence[str] = ("one", "two"),
    **settings: Any,
) -> tuple[dict, list[dict[str, str]]]:
    """weights.json and search.csv of a merge under this guard."""
    shutil.copytree(run, copy)
    merging = MergingConfig(**{"compare": [method], **settings}, method=method, guard=guard, guard_sources=[*sources])
    run_stage(
        CHAIN["merge"], Config(profile="tiny", run=copy.name, runs=str(copy.parent), precision="fp32", merging=merging)
    )
    return json.loads((copy / "merge/weights.json").read_text("utf-8")), read_csv(copy / "merge/search.csv")


def test_without_a_guard_the_search_takes_the_model_that_forgot(forgetful_run: Path, tmp_path: Path) -> None:
    findings, _ = merged(forgetful_run, tmp_path / "run", None)
    assert findings["compared"]["search"]["guard_loss"] > 0.02


def test_the_guard_rejects_the_model_that_forgot_and_every_loss_has_an_interval(
    forgetful_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    findings, rows = merged(forgetful_run, tmp_path / "run", 0.02)
    forgot, base, taken = (findings["compared"][name] for name in ("symmetric", "init", "search"))
    assert forgot["dev"] > base["dev"] + 0.1  # its own dev rows only show the gain
    assert forgot["guard_loss"] > 0.1
    assert forgot["allowed"] is False
    assert taken["allowed"] is True
    assert taken["guard_loss"] <= 0.02 or taken["guard_loss_low"] <= 0 < forgot["guard_loss_low"]
    assert taken["dev"] == max(float(row["dev"]) for row in rows if row["allowed"] == "True")
    assert any(float(row["dev"]) > taken["dev"] for row in rows if row["allowed"] == "False")
    assert taken["guard_loss_high"] > 0.02  # 56 queries can't show more, which is logged
    assert "too few queries to tell if search loses more than merging.guard=0.02: " in caplog.text
    assert forgot["guard_loss"] == max(forgot["guard/one/loss"], forgot["guard/two/loss"])
    for row in rows:
        low, mean, high = (float(row[name]) for name in ("guard_loss_low", "guard_loss", "guard_loss_high"))
        assert low <= mean <= high
        assert (row["allowed"] == "False") == (low > 0 and mean > 0.02)
        for name in ("one", "two"):
            base, own = (float(of[f"guard/{name}"]) for of in (rows[0], row))
            assert float(row[f"guard/{name}/loss"]) == pytest.approx(base - own)


def test_a_loss_of_few_queries_is_no_ground_to_reject() -> None:
    """Of 26 queries nineteen are unchanged, four lose and three gain: the point estimate is above the limit."""
    changes = np.array([0.0] * 19 + [0.4] * 4 + [-0.3] * 3)
    few = paired_guard_loss(changes, np.zeros(26), seed=1, name="one")
    assert few.mean == pytest.approx(0.7 / 26)
    assert few.low < 0 < 0.02 < few.mean < few.high
    assert allowed_by({"one": few}, 0.02) is True
    many = paired_guard_loss(np.tile(changes, 200), np.zeros(26 * 200), seed=1, name="one")
    assert many.mean == pytest.approx(few.mean) and many.high - many.low < (few.high - few.low) / 10
    assert allowed_by({"one": many}, 0.02) is False  # the same loss over 200 times the queries is one


def test_the_interval_is_that_of_the_evaluation() -> None:
    """Merging can't import evaluation, whose bootstrap counts items; both resample the same way."""
    numbers = np.random.default_rng(0)
    base, scores = numbers.random(400), numbers.random(400)
    columns: dict[str, np.ndarray] = {"lost": base - scores}
    plan = Resampling(resamples=10_000)
    outcome = Outcome(columns, (Measure("lost", 0.0, "mean", ("lost",)),))
    theirs = interval(replicates([outcome], plan, "suite", "task")[0])
    ours = paired_guard_loss(base, scores, seed=1, name="one")
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=2e-3)


def test_an_unchanged_model_loses_nothing() -> None:
    same = np.array([1.0, 0.5, 0.0, 0.63])
    found = paired_guard_loss(same, same, seed=1, name="one")
    assert found == GuardLoss(0.0, 0.0, 0.0) and not found.sure


def test_the_set_that_decides_is_the_one_that_surely_loses_most() -> None:
    losses = {
        "noisy": GuardLoss(0.05, -0.02, 0.12),
        "sure": GuardLoss(0.03, 0.015, 0.045),
        "small": GuardLoss(0.01, 0.005, 0.015),
    }
    candidate = Candidate("search", None, DevScore({}, {}), {}, losses, None)
    assert candidate.deciding_loss == losses["sure"]
    assert losses["sure"].as_gain == "-0.030 (-0.045 to -0.015)"
    assert allowed_by(losses, 0.02) is False
    assert allowed_by(losses, 0.03) is True and allowed_by(losses, 0.0) is False


@pytest.mark.parametrize(("sources", "limit"), [([], 0.01), (["one", "two"], None)])
def test_what_nothing_guards_is_not_called_allowed(
    forgetful_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sources: list[str], limit: float | None
) -> None:
    findings, rows = merged(forgetful_run, tmp_path / "run", limit, method="uniform", sources=sources)
    assert {row["allowed"] for row in rows} == {""}
    assert all(row["guard_loss"] == "" for row in rows) == (not sources)
    assert findings["compared"]["uniform"]["allowed"] is None
    manifest = read_manifest(tmp_path / "run/merge")
    assert manifest is not None and manifest.metrics["dev_under_guard"] == manifest.metrics["dev"]
    shown = capsys.readouterr().out
    assert "not" in shown and "guarded" in shown and "yes" not in shown


def test_only_the_guard_is_blamed_for_what_the_guard_did(
    forgetful_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a grid of halves no weights sum to more than 1 and at most 1.2."""
    merged(forgetful_run, tmp_path / "run", 0.02, compare=["extrapolated"], extrapolation_limit=1.2, grid_step=0.5)
    lines = [record.getMessage() for record in caplog.records if "extrapolated candidate" in record.getMessage()]
    assert lines == [
        "merge: there is no extrapolated candidate: no multiple of merging.grid_step=0.5 is within its bounds"
    ]


def test_a_method_without_a_candidate_is_one_line(forgetful_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no extrapolated candidate to take"):
        merged(forgetful_run, tmp_path / "run", 0.02, method="extrapolated", extrapolation_limit=1.2, grid_step=0.5)


def test_a_set_of_one_query_guards_nothing(forgetful_run: Path, tmp_path: Path) -> None:
    path = forgetful_run / "data/heldout/single.parquet"
    rows = [("белый стол", positive, []) for positive in ("стол белый", "стол")]
    polars.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(path)
    with pytest.raises(UserError, match="set single has one query"):
        merged(forgetful_run, tmp_path / "run", 0.02, sources=["one", "single"])


def test_guard_rows_come_in_a_seeded_order(data: Path) -> None:
    def anchors(seed: int) -> list[str]:
        config = Config(profile="tiny", run="run", seed=seed)
        return read_held_out_sets(config, data, ["guard_one"])[0].anchors

    assert anchors(1) == anchors(1) != anchors(2)
    assert sorted(anchors(1)) == sorted(anchors(2))


def test_guard_sets_have_the_prompts_of_their_side_and_as_many_texts_as_asked(data: Path) -> None:
    merging = MergingConfig(guard_queries=5, guard_candidates=12)
    config = Config(profile="tiny", run="run", merging=merging)
    config.data.held_out = {"guard_one": SourceConfig(side="symmetric")}
    model = tiny_model()
    model.prompts = {"query": "вопрос: ", "document": "текст: "}
    blend: Any = SimpleNamespace(model=model, precision="fp32", token_budget=None)
    sets = read_held_out_sets(config, data, ["guard_one", "guard_two"])
    found: Any = guard_evaluators(config, sets, blend).evaluators
    for name, prompt in (("guard_one", "вопрос: "), ("guard_two", "текст: ")):
        assert (len(found[name].queries), len(found[name].corpus)) == (5, 12)
        assert {text.split()[0] + " " for text in found[name].corpus} == {prompt}
