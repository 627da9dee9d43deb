"""A model's scores don't depend on which models were scored before it: they are those that mteb gives for it alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.abstasks import AbsTask

from evaluation.encoder import Encoder
from evaluation.models import folder_fingerprint
from evaluation.outcome import Outcome
from evaluation.suites.mteb_run import LOADED, DenseEncoder, run_task
from tests.evaluation.conftest import MakeModel
from tests.support.mteb_tasks import TYPES, task_of_type

Models = dict[str, DenseEncoder]


@pytest.fixture(scope="module")
def models(make_model: MakeModel) -> Models:
    folders = {name: make_model(seed=seed, pooling="mean") for seed, name in enumerate(("init", "merge", "third"), 11)}
    return {
        name: DenseEncoder(Encoder(folder, device="cpu"), folder_fingerprint(folder))
        for name, folder in folders.items()
    }


def alone(model: DenseEncoder, kind: str) -> Any:
    """mteb's scores of the model by itself."""
    encode = {"batch_size": LOADED}
    result = mteb.evaluate(model, task_of_type(kind), cache=None, encode_kwargs=encode, co2_tracker=False)
    return json.loads(json.dumps(result.task_results[0].scores))


def scored(models: Models, names: Sequence[str], task: AbsTask, folder: Path) -> dict[str, Outcome]:
    """The outcome by model, with one task for all, as in a suite."""
    return {name: run_task(models[name], task, [], folder) for name in names}


def kept_scores(model: DenseEncoder, folder: Path) -> Any:
    """mteb's scores of the model as they were kept."""
    (file,) = (folder / "parts" / model.mteb_model_meta.revision).glob("*.json")
    parts = json.loads(file.read_text(encoding="utf-8"))
    return {
        split: [part["scores"] for part in parts if part["split"] == split] for split in {p["split"] for p in parts}
    }


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are equal to the bit."""
    columns = one.columns.keys() == other.columns.keys() and all(
        np.array_equal(values, other.columns[name]) for name, values in one.columns.items()
    )
    return columns and one.measures == other.measures and one.notes == other.notes


def check(kind: str, models: Models, folder: Path) -> None:
    one, other = folder / "one", folder / "other"
    first = scored(models, ["init", "merge"], task_of_type(kind), one)
    second = scored(models, ["merge", "init"], task_of_type(kind), other)
    for name in ("init", "merge"):
        assert kept_scores(models[name], one) == kept_scores(models[name], other) == alone(models[name], kind)
        assert same(first[name], second[name])
    assert not same(first["init"], first["merge"])
    untouched = task_of_type(kind)
    untouched.dataset, untouched.data_loaded = None, False  # reading it would need the Hub
    again = scored(models, ["merge", "init"], untouched, one)
    assert all(same(again[name], first[name]) for name in again)
    more = scored(models, ["third", "init", "merge"], task_of_type(kind), one)
    assert all(same(more[name], first[name]) for name in first)
    assert kept_scores(models["third"], one) == alone(models["third"], kind)


@pytest.mark.parametrize("kind", ["Retrieval", "MultilabelClassification", "Clustering"])
def test_types_that_depended_on_the_order_no_longer_do(kind: str, models: Models, tmp_path: Path) -> None:
    task = task_of_type(kind)
    first = scored(models, ["init", "merge"], task, tmp_path / "one")
    second = scored(models, ["merge"], task, tmp_path / "other")
    assert same(first["merge"], second["merge"])
    assert kept_scores(models["merge"], tmp_path / "one") == alone(models["merge"], kind)
    assert not same(first["init"], first["merge"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_mteb_scores_each_model_as_if_it_were_alone(kind: str, models: Models, tmp_path: Path) -> None:
    check(kind, models, tmp_path)
