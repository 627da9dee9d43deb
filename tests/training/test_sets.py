"""A set's texts as tokens: those of each row, and each distinct text once."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from configs.schema.training import SetConfig, SideConfig
from pipeline.core.embedding import Prompts
from pipeline.core.errors import UserError
from tests.support.planned_sets import rows, tiny_model, write_set
from training import sets
from training.batch_plan import GlobalBatch
from training.batches import PlannedDataset, text_lengths
from training.sets import prepare_sets, tokenised_set

RIVER, TOWN, WINTER = "Река течёт к морю через весь город.", "Город стоит на реке.", "Зимой в лесу тихо."
ROWS = [
    {"anchor": "Где стоит город?", "positive": TOWN, "negatives": [WINTER, RIVER], "score": None},
    {"anchor": RIVER, "positive": WINTER, "negatives": [], "score": 0.5},
    {"anchor": "Что бывает зимой?", "positive": WINTER, "negatives": [TOWN], "score": None},
]


@pytest.mark.parametrize("prompts", [Prompts("запрос: ", ""), Prompts("текст: ", "текст: ")])
def test_rows_have_the_tokens_of_their_texts_and_each_distinct_text_is_tokenised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: Prompts
) -> None:
    monkeypatch.setattr(sets, "AT_ONCE", 2)  # texts: more parts than one
    tokenizer, side = tiny_model().tokenizer, SideConfig(anchor_length=12, positive_length=12, negatives=2)
    path = write_set(tmp_path / "city.parquet", ROWS * 50)

    def tokens(prompt: str, text: str) -> list[int]:
        return tokenizer(prompt + text, truncation=True, max_length=12)["input_ids"]

    for _ in range(2):  # made, and read
        item = tokenised_set(path, tokenizer, prompts, side, angle=False, cache=tmp_path / "tokens")
        batch = GlobalBatch("city", np.array([75, 76]), np.zeros((2, 0), np.int64))
        found = PlannedDataset([item], 0.3).__getitems__(batch)
        angled = dataclasses.replace(item, rows=dataclasses.replace(item.rows, angle=True))
        weights = [rows["angle_weight"] for rows in (found, PlannedDataset([angled], 0.3).__getitems__(batch))]
        assert weights == [0.0, 0.3]  # AnglE is for the sets that it applies to
        third = PlannedDataset([item], 0.0).__getitems__(GlobalBatch("city", np.array([3]), np.array([[1]])))
        texts = [*found["texts"], *third["texts"]]
        for row, given, taken in zip(texts, (ROWS[0], ROWS[1], ROWS[0]), ([], [], [1]), strict=True):
            passages = [given["positive"], *(given["negatives"][index] for index in taken)]
            expected = [tokens(prompts.anchor, given["anchor"]), *(tokens(prompts.positive, text) for text in passages)]
            assert row == expected
        assert np.isnan(found["score"][0]) and found["score"][1] == 0.5
        lengths = [len(text) for row in found["texts"] for text in row]
        assert text_lengths(item, batch).tolist() == sorted(lengths)
        texts = [*found["texts"][0], *(tokens(prompts.positive, text) for text in ROWS[0]["negatives"])]
        assert item.rows.lengths[0] == max(map(len, texts))
    distinct = {(prompts.anchor, row["anchor"]) for row in ROWS}
    distinct |= {(prompts.positive, text) for row in ROWS for text in (row["positive"], *row["negatives"])}
    kept = {id(texts.ids): len(texts.ids) for texts in (item.anchors, item.passages)}
    assert sum(kept.values()) == sum(len(tokens(*text)) for text in distinct)


def test_a_side_reads_each_set_with_its_prompts_lengths_and_share_of_the_batches(tmp_path: Path) -> None:
    """Negatives that are not taken don't count among a row's texts."""
    content = rows(8, negatives=2)
    content[1]["positive"] = "лес"
    for name in ("symmetric/pairs", "asymmetric/questions", "asymmetric/left_out"):
        write_set(tmp_path / f"{name}.parquet", content)
    shares = {"sets": [{"name": "pairs", "weight": 3.0, "repeat": 2}]}
    (tmp_path / "ledger.json").write_text(json.dumps(shares), encoding="utf-8")
    own = {"pairs": SetConfig(weight=0.5), "left_out": SetConfig(weight=0)}
    side, model = SideConfig(anchor_length=10, positive_length=20, negatives=0, sets=own), tiny_model()
    model.prompts = {"query": "вопрос: ", "document": "текст: "}
    found = prepare_sets("joint", side, model, tmp_path, tmp_path / "tokens").train
    shares_of = {name: (item.rows.weight, item.rows.repeat, item.rows.max_negatives) for name, item in found.items()}
    assert shares_of == {"pairs": (1.5, 2, 0), "questions": (1.0, 1, 0)}
    for name, prompts in (("pairs", ("вопрос: ", "вопрос: ")), ("questions", ("вопрос: ", "текст: "))):
        item, expected = found[name], list[list[int]]()
        for text, prompt, most in zip((content[0]["anchor"], content[0]["positive"]), prompts, (10, 20), strict=True):
            expected.append(model.tokenizer(prompt + text, truncation=True, max_length=most)["input_ids"])
        assert [item.anchors[item.rows.anchors[0]], item.passages[item.rows.positives[0]]] == expected
        lengths = (
            [len(texts[number]) for number in numbers]
            for texts, numbers in ((item.anchors, item.rows.anchors), (item.passages, item.rows.positives))
        )
        assert item.rows.lengths.tolist() == [max(pair) for pair in zip(*lengths, strict=True)]


def test_a_prompt_that_leaves_nothing_of_a_set_s_texts_is_refused(tmp_path: Path) -> None:
    """They would all be cut to the same tokens."""
    write_set(tmp_path / "asymmetric/questions.parquet", rows(8))
    model, side = tiny_model(), SideConfig(sets={"questions": SetConfig(positive_length=8)})
    model.prompts = {"query": "вопрос: ", "document": "текст, в котором есть ответ на вопрос: "}
    with pytest.raises(UserError, match=r"cut at 8 tokens.*training\.asymmetric, set questions"):
        prepare_sets("asymmetric", side, model, tmp_path, tmp_path / "tokens")
