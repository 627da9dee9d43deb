"""The guard on a model that really forgot: trained hard on one narrow set, whose dev rows only praise it for that."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import polars
import pytest

from configs.schema.config import Config
from configs.schema.merging import MergingConfig
from merging.choose import read_held_out_sets
from merging.search import guard_loss
from pipeline.chain import CHAIN
from pipeline.core.artefact import Manifest
from pipeline.stage import run_stage
from tests.merging.conftest import COLOURS, WORDS, make_model, perturb

SCHEMA = {"anchor": polars.String, "positive": polars.String, "negatives": polars.List(polars.String)}
TRAINED, HELD_OUT = WORDS[:16], WORDS[16:]


def narrow_pair(colour: str, first: str, second: str) -> tuple[str, str]:
    """Whatever has the same colour belongs together: whoever learns that stops looking at the other words."""
    return f"{colour} {first}", f"{colour} {second}"


def plain_pair(colour: str, word: str) -> tuple[str, str]:
    """Retrieval as the base can do it: the same words in another order."""
    return f"{colour} {word}", f"{word} {colour}"


def train_hard(source: Path, target: Path) -> Path:
    """Contrastive training with a high learning rate on narrow pairs alone, one of each colour in a batch."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    model, random_numbers = SentenceTransformer(str(source), device="cpu"), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        pairs = [narrow_pair(colour, *random_numbers.choice(TRAINED, 2, replace=False)) for colour in COLOURS]
        sides = [model.preprocess([pair[place] for pair in pairs]) for place in (0, 1)]
        anchors, positives = (model(side)["sentence_embedding"] for side in sides)
        loss = torch.nn.functional.cross_entropy(anchors @ positives.T / 0.05, torch.arange(len(pairs)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save(str(target))
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


def merged(run: Path, copy: Path, guard: float | None) -> tuple[dict, list[dict[str, str]]]:
    """weights.json and search.csv of a searched merge under this guard."""
    shutil.copytree(run, copy)
    settings = MergingConfig(method="search", guard=guard, guard_sources=["one", "two"], compare=["search"])
    run_stage(
        CHAIN["merge"], Config(profile="tiny", run=copy.name, runs=str(copy.parent), precision="fp32", merging=settings)
    )
    with (copy / "merge/search.csv").open(encoding="utf-8") as file:
        return json.loads((copy / "merge/weights.json").read_text(encoding="utf-8")), list(csv.DictReader(file))


def test_without_a_guard_the_search_takes_what_forgot(forgetful_run: Path, tmp_path: Path) -> None:
    findings, _ = merged(forgetful_run, tmp_path / "run", None)
    assert findings["compared"]["search"]["guard_loss"] > 0.02


def test_the_guard_rejects_the_model_that_forgot(forgetful_run: Path, tmp_path: Path) -> None:
    findings, rows = merged(forgetful_run, tmp_path / "run", 0.02)
    forgot, base, taken = (findings["compared"][name] for name in ("symmetric", "init", "search"))
    assert forgot["dev"] > base["dev"] + 0.1  # its own dev rows only praise it
    assert forgot["guard_loss"] > 0.1
    assert forgot["allowed"] is False
    assert taken["allowed"] is True
    assert taken["guard_loss"] <= 0.02
    assert taken["dev"] == max(float(row["dev"]) for row in rows if row["allowed"] == "True")
    assert any(float(row["dev"]) > taken["dev"] for row in rows if row["allowed"] == "False")


def test_the_loss_is_that_of_the_worst_set() -> None:
    base = {"one": 0.8, "two": 0.5}
    assert guard_loss(base, {"one": 0.9, "two": 0.45}) == pytest.approx(0.05)
    assert guard_loss(base, {"one": 0.9, "two": 0.55}) == pytest.approx(-0.05)
    assert guard_loss({}, {}) == 0


def test_guard_rows_come_in_a_seeded_order(data: Path) -> None:
    def anchors(seed: int) -> list[str]:
        config = Config(profile="tiny", run="run", seed=seed)
        return read_held_out_sets(config, data, ["guard_one"])[0].anchors

    assert anchors(1) == anchors(1) != anchors(2)
    assert sorted(anchors(1)) == sorted(anchors(2))
