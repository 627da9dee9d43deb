"""The data stage on the bundled samples: counts, splits, held-out texts, determinism and rebuilds."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from configs.schema.data import SourceConfig
from data.artefact import rows_of_sets
from data.pairs.cleaning import comparable
from pipeline.core.errors import UserError
from tests.data.conftest import OneSet
from tests.support.prepared_data import Prepared, composed, run, run_config
from tests.support.runs import REPOSITORY
from tests.support.small_bases import tiny_base

BUILT = {  # pairs that each construction makes of the samples' rows, card counting: (rows, pairs, negatives in train)
    "nli": {"allnli": (62, 24), "mednli": (60, 27), "rcb": (30, 13), "terra": (53, 28), "ru_wanli": (65, 28)},
    "paraphrase_groups": {"tapaco": (67, 28)},
    "query_pos_neg": {"ru_hnp": (28, 140)},
    "triplets": {"miracl": (29, 29), "mldr": (28, 28), "mr_tydi": (29, 2900)},
    "title_text_summary": {"mlsum": (29, 58), "xlsum": (29, 58), "gazeta": (28, 56)},
    "pairs": {
        "lenta": (29, 29),
        "panorama": (29, 29),
        "pravo_israel": (29, 29),
        "fialka": (29, 29),
        "russian_keywords": (29, 29),
        "gsm8k_ru": (28, 28),
        "dsum_ru": (29, 29),
        "summ_dialog_news": (29, 29),
    },
}

ONLY_TERRA = [f"~data.sources.{name}" for name in ("ru_wanli", "ru_hnp", "tapaco", "gazeta", "mr_tydi")]


def test_counts_of_the_samples_by_construction(card: Prepared) -> None:
    config = composed("data=card")
    for construction, sets in BUILT.items():
        for name, counts in sets.items():
            line = card.ledger[name]
            assert config.data.sources[name].construction == construction
            assert (line["raw"], line["built"]) == counts, name


def test_every_set_of_the_card_is_in_the_ledger(samples: Prepared) -> None:
    assert sum(line["side"] != "held_out" for line in samples.ledger.values()) == 21
    totals = samples.account["totals"]
    assert totals["card"] == totals["card_total_pairs"] == 2_240_961
    assert sum(line["card_negatives"] or 0 for line in samples.ledger.values()) == totals["card_total_negatives"]


def test_rows_are_accounted_for(samples: Prepared) -> None:
    for name, line in samples.ledger.items():
        negatives = line["dropped"].get("negatives, empty or equal to the positive", 0)
        pairs_dropped = sum(line["dropped"].values()) - negatives
        assert line["built"] + line["scored"] - pairs_dropped == line["kept"], name
        if line["side"] == "held_out":
            continue
        train = samples.pairs(line["side"], name)
        assert len(train) == line["train"]
        assert train["negatives"].list.len().sum() == line["negatives"]


def test_the_dirt_of_the_samples_is_found(samples: Prepared) -> None:
    reasons = {reason for line in samples.ledger.values() for reason in line["dropped"]}
    assert {"duplicate", "empty text", "other script", "anchor equals positive"} <= reasons
    for frame in samples.train().values():
        texts = pl.concat([frame["anchor"], frame["positive"], frame["negatives"].explode().drop_nulls()])
        assert not texts.str.contains(r"</?(?:p|b|br|div|s|i)\s*/?>|&nbsp;|^\s|\s$|  ").any()
        assert (texts.str.len_chars() >= 2).all()


def test_dev_rows_share_no_text_with_any_training_set(samples: Prepared) -> None:
    trained: set[str] = set()
    for frame in samples.train().values():
        trained |= texts_of(frame)
    dev = list((samples.folder / "dev").glob("*.parquet"))
    assert len(dev) >= 10
    for path in dev:
        assert not texts_of(pl.read_parquet(path)) & trained, path.stem


def test_rows_with_a_label_are_kept_with_a_score(samples: Prepared, card: Prepared) -> None:
    assert set(samples.pairs("symmetric", "rcb")["score"]) == {0.0, 0.5, 1.0}
    assert set(samples.pairs("symmetric", "terra")["score"]) == {0.0, 1.0}
    assert "score" not in card.pairs("symmetric", "rcb").columns


def test_scored_pairs_keep_their_scores_and_only_the_best_are_pairs(tmp_path: Path, one_set: OneSet) -> None:
    firsts = ["Кот спит на печи.", "Идёт сильный дождь.", "Поезд опоздал на час."]
    seconds = ["Котик дремлет на печке.", "На улице холодно.", "Яблоки уже созрели."]
    pl.DataFrame({"text_1": firsts, "text_2": seconds, "score": [5, 2, 0]}).write_ndjson(tmp_path / "mine.jsonl")
    prepared = run(
        tmp_path,
        *ONLY_TERRA,
        "+source@data.sources.scored=example_scored",
        f"data.sources.scored.path={tmp_path}/mine.jsonl",
        "data.dev.anchors=0",
    )
    assert prepared.pairs("symmetric", "scored")["score"].to_list() == pytest.approx([1.0, 0.4, 0.0])
    line = prepared.ledger["scored"]
    assert (line["built"], line["scored"], line["train"]) == (1, 2, 3)
    given = {"columns": {"anchor": "text_1", "positive": "text_2", "score": "score"}, "score_range": [0, 10]}
    none_best = one_set(tmp_path / "mine.jsonl", construction="scored_pairs", **given)
    assert none_best.ledger["mine"]["train"] == none_best.ledger["mine"]["scored"] == 3


@pytest.mark.parametrize(
    ("name", "columns", "bounds", "counts"),
    [
        ("paraphraser", {"anchor": "text_1", "positive": "text_2", "score": "label"}, "[-1,1]", {1.0: 1685}),
        ("sick_ru", {"anchor": "premise", "positive": "hypothesis", "score": "score"}, "[1,5]", {1.0: 135, 0.0: 153}),
    ],
)
def test_real_scored_sets_need_only_a_yaml_file(
    name: str, columns: dict[str, str], bounds: str, counts: dict[float, int], shared_data: Path, tmp_path: Path
) -> None:
    source = "data.sources.scored"
    given = [f"{source}.columns.{role}={column}" for role, column in columns.items()]
    given += [f"{source}.path={shared_data}/training/{name}.jsonl", f"{source}.score_range={bounds}"]
    free = ["data.dev.anchors=0", "data.cleaning.duplicates=never", "data.cleaning.script=none"]
    prepared = run(tmp_path, *ONLY_TERRA, f"+source@{source}=example_scored", *given, *free)
    line, scores = prepared.ledger["scored"], prepared.pairs("symmetric", "scored")["score"]
    assert line["built"] == counts[1.0] and line["built"] + line["scored"] == line["raw"]
    lost = line["raw"] - line["kept"]
    assert lost < line["raw"] / 20 and all(
        count - lost <= (scores == score).sum() <= count for score, count in counts.items()
    )
    assert scores.is_between(0, 1).all()


def test_what_cleaning_changed_is_in_the_ledger(tmp_path: Path, one_set: OneSet) -> None:
    anchors = ["Если a <b и c> d", "Красный\u200bкот", "<b>Жирный</b> шрифт", "Рога &amp; копыта", "Чистый текст"]
    rows = pl.DataFrame({"question": anchors, "answer": [f"Ответ номер {number}" for number in range(5)]})
    rows.write_ndjson(tmp_path / "mine.jsonl")
    prepared = one_set(tmp_path / "mine.jsonl", columns={"anchor": "question", "positive": "answer"})
    assert prepared.train()["mine"]["anchor"].to_list() == [
        "Если a <b и c> d",
        "Красный кот",
        "Жирный шрифт",
        "Рога & копыта",
        "Чистый текст",
    ]
    line = prepared.ledger["mine"]
    assert line["cleaned"] == {"tags": 1, "entities": 1, "invisible characters": 1, "spaces": 1}
    assert line["examples"] == [
        ["tags", "<b>Жирный</b> шрифт", " Жирный  шрифт"],
        ["entities", "Рога &amp; копыта", "Рога & копыта"],
        ["invisible characters", "Красный\\u200bкот", "Красный кот"],
    ]
    shown = (prepared.folder / "ledger.md").read_text(encoding="utf-8")
    assert "Texts changed by cleaning: tags 1, entities 1, invisible characters 1, spaces 1. Examples: `` <b>" in shown


def test_odd_characters_are_cleaned_by_their_meaning(shared_data: Path, one_set: OneSet) -> None:
    path = shared_data.parent / "cases" / "odd_characters.jsonl"
    source = {"construction": "query_pos_neg", "columns": {"query": "query", "pos": "pos", "neg": "neg"}}
    queries = one_set(path, **source).train()["mine"]["anchor"].to_list()
    assert len(queries) == 12
    assert {
        "Семья 👨\u200d👩\u200d👧 на отдыхе у моря",
        "Красный кот сидит на окне",
        "Мягкий знак в слове",
        "Кавычки «ёлочки» и &amp; амперсанд",
        "Если a<b и b>c, то код alert(1) плох",
        "Таб и нуль и цвет",
    } <= set(queries)


def test_queries_without_a_key_of_negatives_are_pairs(shared_data: Path, one_set: OneSet) -> None:
    columns = {"query": "query", "pos": "pos", "neg": "neg"}
    path = shared_data.parent / "cases" / "no_neg_key.jsonl"
    line = one_set(path, construction="query_pos_neg", columns=columns).ledger["mine"]
    assert line["raw"] == line["train"] == 12 and line["negatives"] == 0


def test_card_repeats_mr_tydi_for_each_negative_and_distinct_does_not(samples: Prepared, card: Prepared) -> None:
    assert card.pairs("asymmetric", "mr_tydi")["negatives"].list.len().max() == 1
    once = samples.pairs("asymmetric", "mr_tydi")
    assert once.select("anchor", "positive").is_unique().all() and once["negatives"].list.len().max() == 15


def test_held_out_sets_and_evaluation_samples_are_never_trained_on(samples: Prepared, tmp_path: Path) -> None:
    held_out = samples.pairs("asymmetric", "panorama")
    sample = "Губернатор подписал закон о тишине"  # from evaluation/samples/paraphrase.jsonl
    shouted = pl.DataFrame({"question": held_out["anchor"].str.to_uppercase(), "answer": held_out["positive"]})
    others = pl.DataFrame({"question": ["Что случилось?", "Что ещё?"], "answer": [f"«{sample}»!", "Ничего нового."]})
    pl.concat([shouted, others]).write_ndjson(tmp_path / "copy.jsonl")
    given = ["+source@data.sources.copy=example_custom", f"data.sources.copy.path={tmp_path}/copy.jsonl"]
    prepared = run(tmp_path, *ONLY_TERRA, *given)
    assert prepared.ledger["copy"]["dropped"] == {
        "held out: panorama": len(held_out),
        "evaluation sample: paraphrase": 1,
    }
    assert prepared.train()["copy"]["positive"].to_list() == ["Ничего нового."]


def test_a_local_set_may_have_a_local_file_of_dev_rows(tmp_path: Path, one_set: OneSet) -> None:
    for name, count in (("train", 5), ("dev", 2)):
        texts = [f"текст {name} {number}" for number in range(count)]
        pl.DataFrame({"q": texts, "a": [f"ответ: {text}" for text in texts]}).write_ndjson(tmp_path / f"{name}.jsonl")
    columns, dev_files = {"anchor": "q", "positive": "a"}, [str(tmp_path / "dev.jsonl")]
    prepared = one_set(tmp_path / "train.jsonl", "data.dev.anchors=9", columns=columns, dev_files=dev_files)
    assert len(prepared.train()["mine"]) == 5 and len(prepared.pairs("dev", "mine")) == 2
    with pytest.raises(UserError, match=r"mine: no such file \(nowhere\); fix data.sources.mine.dev_files"):
        one_set(tmp_path / "train.jsonl", columns=columns, dev_files=["nowhere"])


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_a_file_s_name_may_be_in_another_encoding(tmp_path: Path, one_set: OneSet) -> None:
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / os.fsdecode("вопросы.jsonl".encode("cp1251"))  # as unzip leaves them
    file.write_text('{"q": "Который час?", "a": "Полдень."}', encoding="utf-8")
    prepared = one_set(tmp_path / "set", columns={"anchor": "q", "positive": "a"})
    assert prepared.train()["mine"]["anchor"].to_list() == ["Который час?"]


def test_a_row_of_dev_files_that_is_trained_on_removes_no_others(tmp_path: Path, one_set: OneSet) -> None:
    rows = [("вопрос", "ответ"), ("вопрос", "иной ответ"), ("другой вопрос", "иной ответ")]
    for name, some in (("train", rows[:1]), ("dev", rows[1:])):
        pl.DataFrame(some, schema=["q", "a"], orient="row").write_ndjson(tmp_path / f"{name}.jsonl")
    columns, dev_files = {"anchor": "q", "positive": "a"}, [str(tmp_path / "dev.jsonl")]
    prepared = one_set(tmp_path / "train.jsonl", "data.dev.anchors=9", columns=columns, dev_files=dev_files)
    assert prepared.pairs("dev", "mine")["anchor"].to_list() == ["другой вопрос"]


def test_a_set_whose_texts_are_in_several_pairs_has_dev_rows_too(
    tmp_path: Path, one_set: OneSet, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(f"фраза {n // 4} вида {n % 4}", f"фраза {n // 4} вида {(n + 1) % 4}") for n in range(2000)]
    pl.DataFrame(rows, schema=["one", "other"], orient="row").write_ndjson(tmp_path / "rings.jsonl")
    columns = {"anchor": "one", "positive": "other"}
    prepared = one_set(tmp_path / "rings.jsonl", "data.dev.anchors=90", side="symmetric", columns=columns)
    train, dev = prepared.train()["mine"], prepared.pairs("dev", "mine")
    assert len(dev) == 88 and len(train) == 2000 - 88  # 22 whole rings of four
    assert not {*train["anchor"], *train["positive"]} & {*dev["anchor"], *dev["positive"]}
    assert prepared.ledger["mine"]["train"] == len(train) and "dev rows" not in caplog.text
    fewer = one_set(tmp_path / "rings.jsonl", side="symmetric", columns=columns, dev_anchors=12)
    assert len(fewer.pairs("dev", "mine")) == 12
    assert "under 50 dev rows, so their scores are unreliable and count little: mine 12 (raise" in caplog.text


def test_the_guards_of_the_reproduction_are_read(tmp_path: Path) -> None:
    guards = ("sberquad", "wiktionary_guard_terms")
    prepared = run(tmp_path, *ONLY_TERRA, *(f"+source@data.held_out.{name}={name}" for name in guards))
    questions = prepared.pairs("heldout", "sberquad")
    assert (len(questions), questions["positive"].n_unique()) == (28, 14)  # two questions ask for each paragraph
    assert questions["anchor"][1] == "Чем заправляли фонарь маяка до электричества?"
    assert questions["positive"][1].startswith("Маяк на мысе Зимнем построен из гранита")
    assert len(prepared.pairs("heldout", "wiktionary_guard_terms")) > 1000


def test_mixture_ours_has_a_weight_for_every_set_and_negatives_where_it_says_so(tmp_path: Path) -> None:
    chosen = ["data=ours", "data.decontamination.suites=[]", f"data.mining.model={tiny_base()}"]
    prepared, sources = run(tmp_path, *chosen), composed(*chosen).data.sources
    written = (REPOSITORY / "configs/data/ours.yaml").read_text(encoding="utf-8")
    assert sources.keys() == composed("data=distinct").data.sources.keys()
    mined = {name for name, source in sources.items() if source.negatives == "mine"}
    assert len(mined) == 9 and "tapaco" not in mined
    for name, source in sources.items():
        assert f"\n  {name}:" in written  # none is forgotten
        assert prepared.ledger[name]["weight"] == source.weight
        assert prepared.pairs(source.side, name)["negatives"].list.len().max() <= 1 or name not in mined
    assert prepared.pairs("asymmetric", "mldr")["negatives"].list.len().max() == 20
    assert prepared.pairs("asymmetric", "miracl")["negatives"].list.len().max() == 15


def test_a_held_out_set_keeps_its_labels_and_no_row_of_it_is_called_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = run(tmp_path, "~data.sources.terra", "+source@data.held_out.terra=terra")
    assert set(prepared.pairs("heldout", "terra")["score"]) == {0.0, 1.0}
    lines = [line for line in (prepared.folder / "ledger.md").read_text().splitlines() if "| held_out |" in line]
    assert len(lines) == 3 and all(line.endswith("| – | – | 0 | held out |") for line in lines)
    assert re.search(r"under 50 dev rows.*: (\w+ \d+, ){2}\w+ \d+ and 2 more sets", caplog.text)


def test_a_ledger_of_own_sets_is_not_compared_with_the_published_card(
    samples: Prepared, tmp_path: Path, one_set: OneSet, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.DataFrame({"q": ["Где ключ?"], "a": ["На полке."]}).write_ndjson(tmp_path / "mine.jsonl")
    own = one_set(tmp_path / "mine.jsonl", columns={"anchor": "q", "positive": "a"})
    ledger = (own.folder / "ledger.md").read_text(encoding="utf-8")
    assert "| built |" in ledger and "card" not in ledger
    assert " card " not in capsys.readouterr().out
    shown = (samples.folder / "ledger.md").read_text(encoding="utf-8")
    assert "| card |" in shown and "The card's total is 2,240,961" in shown


def test_two_runs_end_in_the_same_bytes_with_any_number_of_workers(samples: Prepared, tmp_path: Path) -> None:
    again = run(tmp_path, "data=distinct", "data.decontamination.suites=[]", "data.workers=1")
    assert again.files() == samples.files()


def test_only_the_changed_set_is_made_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.folder.glob("*/*.parquet")}
    run(tmp_path, "data.sources.terra.scored_rows=false", "data.sources.gazeta.weight=2")
    after = {path: path.stat().st_mtime_ns for path in first.folder.glob("*/*.parquet")}
    changed = {path.relative_to(first.folder).as_posix() for path in before if before[path] != after.get(path)}
    assert {path for path in changed if not path.startswith("dev/")} == {
        "symmetric/terra.parquet",
        "candidates/terra.parquet",
        "keys/terra.parquet",
    }
    assert first.ledger["gazeta"]["weight"] == 2


class Reader:
    """A package's pairs."""

    revision = "package 1.0"

    def pairs(self) -> Iterator[tuple[str, str]]:
        yield "вопрос о погоде", f"ответ из {self.revision}"


def test_another_version_of_a_reader_s_package_makes_its_set_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*ONLY_TERRA, "data.dev.anchors=0")
    config.data.sources["read"] = SourceConfig("Read", "asymmetric", reader=f"{__name__}.Reader")
    for version in ("package 1.0", "package 2.0"):
        monkeypatch.setattr(Reader, "revision", version)
        assert run_config(config, tmp_path).train()["read"]["positive"].to_list() == [f"ответ из {version}"]


def test_a_change_of_the_dev_rows_of_a_reader_s_set_makes_it_again(tmp_path: Path) -> None:
    config, file = composed(*ONLY_TERRA), tmp_path / "dev.csv"
    columns, given = {"anchor": "q", "positive": "a"}, {"path": str(file), "dev_files": [str(file)], "format": "csv"}
    config.data.sources["read"] = SourceConfig(
        "Read", "asymmetric", reader=f"{__name__}.Reader", columns=columns, **given
    )
    for question in ("один вопрос", "другой вопрос"):
        file.write_text(f"q,a\n{question},его ответ\n", encoding="utf-8")
        assert run_config(config, tmp_path).pairs("dev", "read")["anchor"].to_list() == [question]


def test_finished_sets_survive_failing_ones_each_of_which_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=r"ru_hnp: no column nowhere \[and 1 more, above\]"):
        run(tmp_path, "data.sources.ru_hnp.columns.query=nowhere", "data.sources.gazeta.columns.title=headline")
    (message,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert message.startswith("error: gazeta: no column headline")
    made = {path.stem for path in (tmp_path / "test" / "data").glob("*symmetric/*.parquet")}
    assert made == {"terra", "ru_wanli", "tapaco", "mr_tydi"}


@pytest.mark.parametrize("force", ["false", "true"])
def test_a_set_taken_out_of_the_mixture_leaves_the_artefact(tmp_path: Path, force: str) -> None:
    run(tmp_path)
    prepared = run(tmp_path, "~data.sources.ru_hnp", "data.sources.terra.repeat=2", f"force={force}")
    assert "ru_hnp" not in prepared.train() and not (prepared.folder / "dev" / "ru_hnp.parquet").exists()
    assert prepared.ledger["terra"]["repeat"] == 2


def test_sets_that_users_must_supply_are_skipped_visibly(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for entry in (REPOSITORY / "data" / "samples").iterdir():
        if entry.name != "physionet":
            (mirror / entry.name).symlink_to(entry)
    prepared = run(tmp_path, "data=distinct", "data.decontamination.suites=[]", f"mirror={mirror}")
    line = prepared.ledger["mednli"]
    assert line["status"].startswith("skipped: credentialed access") and line["built"] == 0 and line["card"] == 3699
    assert "mednli" not in prepared.train()


def test_a_set_that_is_no_longer_supplied_leaves_the_artefact(tmp_path: Path) -> None:
    config = composed("+source@data.sources.mednli=mednli")
    mirror = shutil.copytree(REPOSITORY / "data" / "samples", tmp_path / "mirror")
    config.mirror, config.data.held_out = str(mirror), {}
    config.data.sources = {name: config.data.sources[name] for name in ("mednli", "terra")}
    assert "mednli" in run_config(config, tmp_path / "runs").train()
    shutil.rmtree(mirror / "physionet")
    later = run_config(config, tmp_path / "runs")
    assert later.ledger["mednli"]["status"].startswith("skipped") and set(later.train()) == {"terra"}
    assert sum(rows_of_sets(later.folder).values()) == later.account["totals"]["train"]


def test_a_sample_of_a_set_does_not_depend_on_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [override for override in ONLY_TERRA if not override.endswith("ru_hnp")] + [
        "data.sources.ru_hnp.max_rows=40"
    ]
    first = run(tmp_path / "a", *chosen)
    monkeypatch.setattr("data.sources.formats.BATCH_ROWS", 7)
    second = run(tmp_path / "b", *chosen)
    assert first.ledger["ru_hnp"]["train"] == 40
    assert first.pairs("symmetric", "ru_hnp").equals(second.pairs("symmetric", "ru_hnp"))


def test_slices_of_a_set_share_no_anchor_and_depend_on_no_seed(one_set: OneSet, tmp_path: Path) -> None:
    rows = [{"anchor": f"вопрос номер {n % 150}", "positive": f"ответ номер {n}"} for n in range(200)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def anchors(first: float, end: float, seed: int) -> list[str]:
        prepared = one_set(
            file, f"seed={seed}", columns={"anchor": "anchor", "positive": "positive"}, slice=[first, end]
        )
        return prepared.pairs("asymmetric", "mine")["anchor"].to_list()

    part, rest = anchors(0.0, 0.3, seed=1), anchors(0.3, 1.0, seed=1)
    assert not set(part) & set(rest) and len(part) + len(rest) == len(rows)
    assert 30 < len(part) < 90
    assert anchors(0.0, 0.3, seed=2) == part


def test_duplicates_between_sets_are_dropped_on_request(tmp_path: Path) -> None:
    twins = [*ONLY_TERRA, "+source@data.sources.first=gazeta", "+source@data.sources.second=gazeta"]
    kept = run(tmp_path / "kept", *twins)
    assert kept.ledger["second"]["kept"] == kept.ledger["first"]["kept"]
    with pytest.raises(UserError, match="second: no usable pair"):
        run(tmp_path / "dropped", *twins, "data.cleaning.duplicates=between")


@pytest.mark.parametrize("part", [{"slice": [0.0, 0.5]}, {"max_rows": 20}])
def test_a_set_that_takes_a_part_leaves_the_rest_to_the_sets_after_it(part: dict[str, Any], tmp_path: Path) -> None:
    rows = pl.DataFrame({"anchor": [f"вопрос {n}" for n in range(60)], "positive": [f"ответ {n}" for n in range(60)]})
    rows.write_ndjson(tmp_path / "rows.jsonl")
    columns = {"anchor": "anchor", "positive": "positive"}
    source = SourceConfig("x", "asymmetric", path=str(tmp_path / "rows.jsonl"), format="jsonl", columns=columns)
    config = composed("data.cleaning.duplicates=between", "data.dev.anchors=3")
    config.data.sources, config.data.held_out = {"first": replace(source, **part), "second": source}, {}
    prepared = run_config(config, tmp_path / "runs")
    held = [*prepared.train().values(), prepared.pairs("dev", "first"), prepared.pairs("dev", "second")]
    assert pl.concat(held).select("anchor", "positive").sort("anchor").equals(rows.sort("anchor"))


def test_a_set_after_a_failed_one_is_made_where_duplicates_between_sets_are_dropped(tmp_path: Path) -> None:
    broken = "data.sources.ru_hnp.columns.query=nowhere"
    with pytest.raises(UserError, match=r"ru_hnp: no column nowhere .*"):
        run(tmp_path, "data.cleaning.duplicates=between", broken)
    assert (tmp_path / "test/data/symmetric/tapaco.parquet").exists()


def test_a_second_language_runs_from_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    prepared = run(tmp_path / "languages=[kk,ru]", "data=kazakh", "languages=[kk,ru]")  # a sweep's name of such a run
    assert prepared.ledger["kazakh_translations"]["kept"] == 12 and prepared.ledger["kazakh_questions"]["kept"] == 10
    assert "Домбыраның неше ішегі бар?" in prepared.train()["kazakh_questions"]["anchor"]


def texts_of(frame: pl.DataFrame) -> set[str]:
    """All texts of a frame of pairs, comparable."""
    negatives = frame["negatives"].explode().drop_nulls()
    return set(comparable(pl.concat([frame["anchor"], frame["positive"], negatives])))
