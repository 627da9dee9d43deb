"""A guide's and a teacher's vectors: equal to the other model's, computed once, and read with the rows of a batch."""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from configs.schema.training import SideConfig
from data.encoders import open_auxiliary_model
from pipeline.chain import CHAIN
from pipeline.core.errors import UserError
from pipeline.stage import prepare_ranks, run_stage
from tests.support import small_bases
from tests.support.planned_sets import prepared_run, rows, tokenised
from tests.support.runs import read_metrics
from training.batch_plan import GlobalBatch
from training.sets import with_vectors

PROMPTS = {"query": "вопрос: ", "document": "текст: "}
KEY = "training.asymmetric.guide"


def test_vectors_are_the_model_s_with_its_prompts_and_a_resumed_run_opens_no_model(tmp_path: Path) -> None:
    content = rows(12, negatives=3)
    content[5]["negatives"][1] = content[7]["anchor"]  # a text in both roles
    item = tokenised(tmp_path, content, negatives=2)
    folder = small_bases.tiny_model(seed=7, hidden=24, max_length=64, prompts=PROMPTS)
    config = prepared_run(tmp_path, {})
    batch = GlobalBatch("set", np.array([7, 5, 0]), np.array([[0, 2], [1, 0], [2, 1]]))
    asked = item, tmp_path / "set.parquet", "asymmetric", SideConfig(anchor_length=4), tmp_path  # the longer counts
    made = with_vectors(*asked, {"guide": lambda: open_auxiliary_model(config, str(folder), KEY)}).others["guide"]
    model = SentenceTransformer(str(folder), device="cpu")
    for found, row, chosen in zip(made.of(item.rows, batch), batch.rows, batch.negatives, strict=True):
        passages = [content[row]["positive"], *(content[row]["negatives"][place] for place in chosen)]
        expected = np.vstack([model.encode_query([content[row]["anchor"]]), model.encode_document(passages)])
        np.testing.assert_allclose(found, expected, atol=1e-6)
    again = with_vectors(*asked, {"guide": lambda: open_auxiliary_model(config, "nowhere/at_all", KEY)}).others["guide"]
    assert np.array_equal(again.of(item.rows, batch), made.of(item.rows, batch))


def test_another_run_reads_the_kept_vectors(tmp_path: Path) -> None:
    item = tokenised(tmp_path, rows(12))
    config, folder, kept = prepared_run(tmp_path, {}), str(small_bases.tiny_model(seed=7, max_length=64)), []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        others = {"guide": lambda: open_auxiliary_model(config, folder, KEY)}
        with_vectors(item, tmp_path / "set.parquet", "symmetric", SideConfig(), tmp_path / name, others)
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/embeddings").rglob("*.npz")}
        kept.append((times, (tmp_path / name / "set.guide.npy").read_bytes()))
    assert kept[0][0] and kept[0] == kept[1]


def test_a_run_with_guide_and_teacher_says_what_they_were_and_opens_them_before_ranks_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = str(small_bases.tiny_model(seed=7, hidden=24, max_length=64))
    sets = {"symmetric/pairs": rows(48, seed=1), "dev/pairs": rows(16, seed=2)}
    config = prepared_run(tmp_path, sets, max_steps=3, guide="init", teacher=teacher, teacher_weight=0.5)
    opened = []
    for work in (prepare_ranks, run_stage):
        caplog.clear()
        with caplog.at_level("INFO", "pipeline"):
            work(CHAIN["symmetric"], config)
        opened.append([role for role in ("guide", "teacher") if f"training.symmetric.{role}: " in caplog.text])
    assert opened == [["guide", "teacher"], []]
    folder = config.folder("symmetric")
    lines = read_metrics(folder)
    assert all(
        line["loss"] == pytest.approx(line["contrastive"] + 0.5 * line["distillation"], abs=2e-4) for line in lines[1:]
    )
    assert all(line["distillation"] > 0 for line in lines[1:]) and "dev_pairs_loss" in lines[-1]
    inputs = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert inputs.keys() == {"data", "init", "teacher"}


def test_a_guide_of_the_run_is_made_first_and_another_is_known_by_its_contents(tmp_path: Path) -> None:
    config, stage = prepared_run(tmp_path, {}), CHAIN["symmetric"]
    assert (stage.needs(config), stage.reads(config)) == (["data", "init"], {})
    config.training.symmetric.guide = "base"
    assert (stage.needs(config), stage.reads(config)) == (["data", "init", "base"], {})
    folder = small_bases.tiny_model(tmp_path / "guide", seed=7)
    config.training.symmetric.guide = str(folder)
    before = stage.reads(config)
    assert stage.needs(config) == ["data", "init"] and before.keys() == {"guide"}
    (folder / "README.md").write_text("другой")
    assert stage.reads(config) != before


def test_a_missing_teacher_is_an_error_of_one_line(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"symmetric/pairs": rows(32)}, max_steps=1, teacher=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"training.symmetric.teacher: neither a folder nor a Hub id") as error:
        run_stage(CHAIN["symmetric"], config)
    assert "\n" not in error.value.line
