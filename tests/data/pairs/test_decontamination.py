"""Evaluation texts planted among training pairs are found and named; a retrieval corpus's passages are not."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema.data import CleaningConfig, DataConfig
from data.pairs import decontamination
from data.pairs.cleaning import Changes, comparable, normalised
from data.pairs.decontamination import BENCHMARK_FILE, SAMPLE_FILE, Decontamination, NearIndex, TextIndex, heads_of
from evaluation.benchmark_texts import task_texts
from evaluation.suites.encodechka.files import SHA256
from pipeline.core.artefact import file_sha256
from tests.support.prepared_data import composed, run_config

SENTENCE = "Мужчина в красной куртке играет на гитаре возле большого городского фонтана."
TEXTS = st.text(alphabet="абвё АБ.,!- ", max_size=400)


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=6))
@settings(max_examples=150, deadline=None)
def test_the_index_finds_exactly_the_texts_that_are_equal(known: list[str], asked: list[str]) -> None:
    index = TextIndex({"task": pl.Series(known, dtype=pl.String)})
    forms = {form for form in comparable(pl.Series(known, dtype=pl.String)) if form}
    column = pl.Series([*asked, *(text.upper() + "!" for text in known)], dtype=pl.String)
    expected = ["task" if form in forms else None for form in comparable(column)]
    assert index.find(column, heads_of(column)).to_list() == expected


def test_a_head_of_punctuation_hides_nothing() -> None:
    index = TextIndex({"task": pl.Series([SENTENCE])})
    texts = pl.Series(["!" * 400 + SENTENCE, SENTENCE * 2])
    assert index.find(texts, heads_of(texts)).to_list() == ["task", None]


def test_a_text_of_two_evaluations_has_the_first_one_s_name() -> None:
    names = "one", "two", "three"
    index = TextIndex({name: pl.Series([SENTENCE, f"Только {name}"]) for name in names})
    texts = pl.Series([SENTENCE, *(f"только {name}" for name in names)])
    assert index.find(texts, heads_of(texts)).to_list() == ["one", *names]


def test_a_text_that_occurs_often_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a query with twenty positives and negatives, each negative occurs twenty times."""
    index, signed = NearIndex({"task": pl.Series([SENTENCE])}, threshold=0.7), list[object]()
    signature = decontamination._signature
    monkeypatch.setattr(decontamination, "_signature", lambda text: signed.append(text) or signature(text))
    texts = [f"{SENTENCE} так", "Река у города замерзает в ноябре, и лёд сходит в апреле.", "слово"]
    assert index.find(pl.Series(texts * 20)).to_list() == ["task", None, None] * 20
    assert len(signed) == 2 and index.find(pl.Series([], dtype=pl.String)).to_list() == []


def test_near_duplicates_are_found_and_other_texts_are_not() -> None:
    index = NearIndex({"task": pl.Series([SENTENCE])}, threshold=0.7)
    asked = [
        SENTENCE.replace("играет", "играл"),
        SENTENCE.upper(),
        "Сегодня " + SENTENCE,
        "Женщина в синем платье поёт у маленького деревенского колодца и улыбается.",
        "Мужчина",
    ]
    assert index.find(pl.Series(asked)).to_list() == ["task", "task", "task", None, None]


def test_a_near_duplicate_shares_at_least_the_threshold_of_all_shingles_and_short_texts_have_none() -> None:
    """The first n characters of one stream have n - 4 shingles, all different: the shares are (n - 4) / 40 and back."""
    stream = "".join(random.Random(1).choices("абвгдежзиклмнопрст", k=60))
    index = NearIndex({"short": pl.Series([stream[:29]]), "task": pl.Series([stream[:44]])}, threshold=0.75)
    found = index.find(pl.Series([stream[:length] for length in range(61)])).to_list()
    assert [length for length, name in enumerate(found) if name] == [*range(4 + 30, 4 + 53 + 1)]  # 30 / 40, 40 / 53
    assert set(found) == {"task", None}


@pytest.mark.parametrize(
    "text",
    ["Компания &amp;laquo;Ветер&amp;raquo; открылась", "сло\u00adво и де\u00adло", "<b>Жирный</b> текст"],
)
def test_an_evaluation_text_that_cleaning_changes_is_found_as_it_is_and_cleaned(text: str, tmp_path: Path) -> None:
    for name, texts in ((BENCHMARK_FILE, [text]), (SAMPLE_FILE, [])):
        columns = {"task": ["sts"] * len(texts), "text": texts}
        pl.DataFrame(columns, schema={"task": pl.String, "text": pl.String}).write_parquet(tmp_path / name)
    forms = [text]
    for _ in range(2):
        forms += normalised(pl.Series(forms[-1:]), CleaningConfig(), True, Changes()).to_list()
    compared = Decontamination.loaded(DataConfig(), {}, tmp_path)
    found, _ = compared.find(pl.DataFrame({"anchor": forms, "positive": ["Ответ"] * 3}))
    assert found.to_list() == ["evaluation: sts"] * 3


def retrieval_task() -> Any:
    split = {
        "corpus": Dataset.from_list([{"id": "d1", "title": "", "text": "Пассаж о реках."}]),
        "queries": Dataset.from_list([{"id": "q1", "text": "Куда впадает Обь?"}]),
        "relevant_docs": {"q1": {"d1": 1}},
    }
    return SimpleNamespace(dataset={"ru": {"dev": split, "train": split}}, hf_subsets=["ru"], eval_splits=["dev"])


def test_queries_of_a_retrieval_task_count_and_its_passages_do_not() -> None:
    assert list(task_texts(retrieval_task())) == ["Куда впадает Обь?"]


def test_only_test_splits_and_texts_of_a_task_count() -> None:
    def rows(text: str) -> Dataset:
        return Dataset.from_list([{"text": text, "label": 1}])

    task = SimpleNamespace(
        dataset=DatasetDict(train=rows("учебный"), test=rows("проверочный")),
        hf_subsets=["default"],
        eval_splits=["test"],
    )
    assert list(task_texts(task)) == ["проверочный"]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A config whose only set holds copies of evaluation texts, and whose suite is one task from a mirror."""
    mirror, encodechka = tmp_path / "mirror", tmp_path / "encodechka"
    folder = mirror / "ai-forever" / "ru-stsbenchmark-sts"
    folder.mkdir(parents=True)
    encodechka.mkdir()
    gold = encodechka / "para_gold.csv"
    gold.write_text("text_1,text_2,class\nЗаголовок первый здесь,Заголовок второй,1\n", encoding="utf-8")
    monkeypatch.setitem(SHA256, gold.name, file_sha256(gold))
    row = {"sentence1": SENTENCE, "sentence2": "Кошка спит на подоконнике.", "score": 1.0}
    for split in ("train", "validation", "test"):
        text = {"sentence1": f"{split} {SENTENCE}", "sentence2": "x", "score": 0.0} if split != "test" else row
        (folder / f"{split}.jsonl").write_text(json.dumps(text, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = [
        {"question": "Первый вопрос?", "answer": SENTENCE},
        {"question": "КОШКА спит на подоконнике", "answer": "Ответ второй."},
        {"question": "Третий вопрос?", "answer": SENTENCE.replace("играет", "играл")},
        {"question": "Четвёртый вопрос?", "answer": "«Заголовок первый» — здесь"},
        {"question": "Пятый вопрос?", "answer": "Ответ, который нигде не встречается."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    config = composed(
        "+source@data.sources.planted=example_custom",
        f"data.sources.planted.path={path}",
        "data.dev.anchors=0",
        "data.decontamination.suites=[encodechka,sts]",
        f"evaluation.encodechka={encodechka}",
        "+evaluation/suite@evaluation.suite.sts=rus_v1_1",
        "evaluation.suite.sts.benchmark=null",
    )
    config.mirror, config.data.held_out = str(mirror), {}
    config.data.sources = {"planted": config.data.sources["planted"]}
    suite = config.evaluation.suite["sts"]
    suite.tasks = {
        "RuSTSBenchmarkSTS": type(next(iter(suite.tasks.values())))(splits=["test"]),
        "RUParaPhraserSTS": suite.tasks.popitem()[1],
    }
    return config


def test_planted_evaluation_texts_are_removed_and_named(planted: Any, tmp_path: Path) -> None:
    prepared = run_config(planted, tmp_path / "runs")
    assert prepared.ledger["planted"]["dropped"] == {
        "evaluation: RuSTSBenchmarkSTS": 2,
        "evaluation: encodechka para_gold": 1,
    }
    evaluations = prepared.account["evaluations"]
    assert evaluations["checked"] == {"encodechka para_gold": 2, "RuSTSBenchmarkSTS": 2}
    assert "RUParaPhraserSTS" in evaluations["not_checked"] and "encodechka stsb_dev" in evaluations["not_checked"]
    assert "found in training: My questions 2" in (prepared.folder / "ledger.md").read_text(encoding="utf-8")


def test_near_duplicates_are_removed_when_asked_and_only_reported_in_mode_report(planted: Any, tmp_path: Path) -> None:
    planted.data.decontamination.near_duplicates = True
    removed = run_config(planted, tmp_path / "removed")
    assert removed.train()["planted"]["anchor"].to_list() == ["Пятый вопрос?"]
    assert removed.ledger["planted"]["dropped"]["near evaluation: RuSTSBenchmarkSTS"] == 1
    planted.data.decontamination.mode = "report"
    reported = run_config(planted, tmp_path / "reported")
    assert len(reported.train()["planted"]) == 5 and not reported.ledger["planted"]["dropped"]
    assert sum(reported.ledger["planted"]["reported"].values()) == 4
    planted.data.decontamination.mode = "off"
    assert run_config(planted, tmp_path / "off").ledger["planted"]["reported"] == {}


@pytest.mark.parametrize("mode", ["remove", "report"])
def test_a_negative_out_of_an_evaluation_leaves_its_pair_and_one_out_of_a_held_out_set_always(
    mode: str, planted: Any, tmp_path: Path
) -> None:
    held_out, other = "Отложенный ответ о погоде", "Обычный неверный ответ"
    row = {"question": "Шестой вопрос?", "answer": "Верный ответ", "wrong": [SENTENCE, held_out, other]}
    planted.data.sources["planted"].path = str(tmp_path / "wrong.jsonl")
    (tmp_path / "wrong.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    source = planted.data.sources["planted"]
    source.construction, source.columns = "query_pos_neg", {"query": "question", "pos": "answer", "neg": "wrong"}
    planted.data.decontamination.mode = mode
    kept_out = {"question": "Отложенный вопрос?", "answer": held_out}
    (tmp_path / "held.jsonl").write_text(json.dumps(kept_out, ensure_ascii=False), encoding="utf-8")
    asked = {"anchor": "question", "positive": "answer"}
    own = {"path": str(tmp_path / "held.jsonl"), "construction": "pairs", "columns": asked}
    planted.data.held_out = {"later": replace(source, **own)}
    prepared = run_config(planted, tmp_path / "runs")
    kept = [SENTENCE, other] if mode == "report" else [other]
    assert prepared.train()["planted"]["negatives"].to_list() == [kept]
    assert prepared.ledger["planted"]["reported"] == {"evaluation: RuSTSBenchmarkSTS": 1}
