"""The whole chain on profile tiny: in one process, and with training under `accelerate launch` on two ranks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.runs import remove_stage, run_main

STAGES = ["data", "init", "symmetric", "asymmetric", "merge", "heads", "evaluate", "report"]
TEXTS = ["Река замерзает в ноябре.", "Когда открыли первый музей?", "Рецепт борща"]


@pytest.fixture(scope="module")
def one_process(chain: Path) -> Path:
    return chain / "tiny"


def manifests(run: Path) -> dict[str, dict]:
    return {stage: json.loads((run / stage / "manifest.json").read_text()) for stage in STAGES}


def embeddings(run: Path, model: str) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    folder = run / model / "model" if model != "init" else run / "init"
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)


def test_every_stage_leaves_a_complete_manifest_and_its_artefacts(one_process: Path) -> None:
    assert {manifest["status"] for manifest in manifests(one_process).values()} == {"complete"}
    expected = {
        "data": ["ledger.json", "ledger.md"],
        "init": ["certificate.json", "vocabulary/id_map.parquet", "modules.json"],
        "symmetric": ["model/modules.json", "plan.json", "metrics.jsonl"],
        "asymmetric": ["model/modules.json", "plan.json", "metrics.jsonl"],
        "merge": ["model/modules.json", "weights.json", "search.csv", "simplex.svg"],
        "evaluate": ["scores.csv", "comparison.csv", "predictions"],
        "report": ["index.html", "model_card.md"],
    }
    paths = [one_process / stage / name for stage, names in expected.items() for name in names]
    assert [path for path in paths if not path.exists()] == []
    assert not (one_process / "symmetric/checkpoints").exists()


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def test_no_evaluation_text_occurs_in_training(repository: Path, one_process: Path) -> None:
    import polars

    trained: set[str] = set()
    for path in [*one_process.glob("data/symmetric/*.parquet"), *one_process.glob("data/asymmetric/*.parquet")]:
        rows = polars.read_parquet(path)
        texts = [*rows["anchor"], *rows["positive"], *rows["negatives"].explode().drop_nulls()]
        trained.update(words(text) for text in texts)
    evaluated: set[str] = set()
    for path in one_process.glob("data/heldout/*.parquet"):
        rows = polars.read_parquet(path)
        evaluated.update(words(text) for text in [*rows["anchor"], *rows["positive"]])
    for path in (repository / "evaluation" / "samples").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            evaluated.update(
                words(value) for key, value in json.loads(line).items() if key != "label" and isinstance(value, str)
            )
    assert len(trained) > 200 and len(evaluated) > 300
    assert trained & evaluated == set()


def test_a_second_run_makes_nothing(run_folder: Path) -> None:
    before = manifests(run_folder)
    done = run_main("profile=tiny", f"runs={run_folder.parent}", "launch.config=none")
    assert done.status == 0 and manifests(run_folder) == before
    assert done.out.count("up to date") == len(STAGES)


@pytest.mark.parametrize("side", ["symmetric", pytest.param("asymmetric", marks=pytest.mark.slow)])
def test_two_ranks_train_the_same_model_as_one(
    one_process: Path, run_folder: Path, side: str, capfd: pytest.CaptureFixture[str]
) -> None:
    remove_stage(run_folder / side)
    done = run_main("profile=tiny", f"runs={run_folder.parent}", "launch.config=cpu", "launch.processes=2")
    assert done.status == 0, done.err
    assert done.out.count("up to date") == len(STAGES) - 1, done.out  # nothing else depends on the number of ranks
    assert manifests(run_folder)[side]["environment"]["processes"] == 2
    assert (capfd.readouterr().out + done.err).count("is untried on this base") == 1  # not once a rank
    initial = embeddings(one_process, "init")
    # Embeddings, not weights: Adam turns rounding into steps where a gradient is 0 by nature (biases of the keys).
    np.testing.assert_allclose(embeddings(one_process, side), embeddings(run_folder, side), atol=1e-4)
    assert not np.allclose(embeddings(one_process, side), initial, atol=1e-2)


def test_a_changed_merge_remakes_nothing_before_it(run_folder: Path) -> None:
    before = manifests(run_folder)
    changed_merge = ["merging=fixed", "merging.compare=[]", "stages=[data,init,symmetric,asymmetric,merge]"]
    done = run_main("profile=tiny", f"runs={run_folder.parent}", "launch.config=none", *changed_merge)
    assert done.status == 0, done.err
    after = manifests(run_folder)
    changed = [stage for stage in STAGES if before[stage]["fingerprint"] != after[stage]["fingerprint"]]
    assert changed == ["merge"]


def test_the_merged_model_has_the_same_embeddings_in_both_libraries(one_process: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    folder = str(one_process / "merge" / "model")
    model = SentenceTransformer(folder, device="cpu")
    ours = model.encode(TEXTS)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    batch = tokenizer([prompt + text for text in TEXTS], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    by_hand = torch.nn.functional.normalize(hidden[:, 0])  # the tiny base pools by CLS
    np.testing.assert_allclose(ours, by_hand.numpy(), atol=1e-6)
