"""encodechka's tasks equal a slow reference path, and read nothing but the benchmark's own files."""

import csv
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, train_test_split

from configs.schema.evaluation import EvaluationConfig
from evaluation.encoder import Encoder
from evaluation.metrics import STATISTICS
from evaluation.suites.encodechka.files import SHA256, DataFiles
from evaluation.suites.encodechka.predictors import inference_task, similarity_task
from evaluation.suites.encodechka.tasks import TASKS, EncodechkaVectors
from evaluation.suites.encodechka.words import tagged_words
from pipeline.core.errors import UserError
from tests.evaluation.conftest import MakeModel
from tests.support.slow_encodechka import SLOW, SlowModel, WordsByName, rows, stacked, tags

ROWS = 160  # of each CSV file in the quick comparison
FILE = "текст\nУ реки стоит мельница.\n".encode()  # a small one, in place of the benchmark's
TEXTS = {"factru.json": 40, "rudrec.json": 240}
LABELS = {
    "para_gold.csv": "class",
    "xnli_ru.csv": "gold_label",
    "SentiRuEval2016_small": "answer",
    "toxic": "toxic",
    "inappropriate": "y",
    "intents": "label",
}


class UncheckedFiles(DataFiles):
    """Parts of the benchmark's files, whose sha256 differ."""

    def path(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="session")
def encodechka_data(shared_data: Path) -> Path:
    return shared_data / "encodechka"


@pytest.fixture(scope="session")
def subset(encodechka_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded, stratified part of every file."""
    folder = tmp_path_factory.mktemp("encodechka")
    for name in SHA256:
        if name.endswith(".json"):
            data = json.loads((encodechka_data / name).read_text(encoding="utf-8"))
            part = {key: values[: TEXTS[name]] for key, values in data.items()}
            (folder / name).write_text(json.dumps(part), encoding="utf-8")
            continue
        found = rows(encodechka_data, name)
        label = next((column for stem, column in LABELS.items() if name.startswith(stem)), None)
        if name.startswith("intents"):
            kept = {row["label"] for row in rows(encodechka_data, "intents_train.csv")}
            chosen = sorted(kept)[:12]
            found = [row for row in found if row["label"] in chosen]
        labels = [row[label] for row in found] if label else None
        part, _ = train_test_split(found, train_size=ROWS, random_state=3, stratify=labels)
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(part)
    return folder


@pytest.fixture(scope="session")
def model(make_model: MakeModel) -> Path:
    return make_model(seed=1, hidden=64, pooling="cls")  # one whose NLI is not decided by rounding


@dataclass(frozen=True)
class OneSet(EncodechkaVectors):
    """The slow path's vectors, so that both sides predict from the same numbers."""

    slow: SlowModel = field(kw_only=True)

    def sentences(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        return stacked(self.slow, list(texts))


def one_set(slow: SlowModel) -> OneSet:
    class Words:
        def words(self, texts: Sequence[list[str]]) -> list[np.ndarray]:
            return [np.stack(slow.word(words)) for words in texts]

    return OneSet(Words(), "leaderboard", 2, slow=slow)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def slow(model: Path) -> WordsByName:
    return WordsByName(model)


@pytest.mark.real_data
@pytest.mark.parametrize("task", TASKS)
def test_a_part_of_every_task_equals_the_slow_path(task: str, slow: WordsByName, subset: Path) -> None:
    outcome = TASKS[task].score(UncheckedFiles(str(subset), subset), one_set(slow))
    assert outcome.measures[0].score == pytest.approx(SLOW[task](slow, subset), abs=1e-3)
    assert outcome.measures[0].score > 0  # both paths failing alike would be equal too


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("task", TASKS)
def test_every_whole_task_equals_the_slow_path(task: str, model: Path, encodechka_data: Path) -> None:
    files, slow = DataFiles(str(encodechka_data), encodechka_data), SlowModel(model)
    expected = SLOW[task](slow, encodechka_data)
    assert TASKS[task].score(files, one_set(slow)).measures[0].score == pytest.approx(expected, abs=1e-3)
    batched = TASKS[task].score(files, EncodechkaVectors(Encoder(model), "leaderboard", workers=2))
    assert batched.measures[0].score == pytest.approx(expected, abs=2e-3)  # batches change the last digits


@pytest.mark.real_data
@pytest.mark.parametrize("task", ["STS", "TI", "IC", "NE2"])
def test_the_score_follows_from_the_items(task: str, model: Path, subset: Path) -> None:
    outcome = TASKS[task].score(UncheckedFiles(str(subset), subset), EncodechkaVectors(Encoder(model), "leaderboard"))
    measure = outcome.measures[0]
    ones, columns = np.ones((1, outcome.items)), [outcome.columns[name] for name in measure.columns]
    again = STATISTICS[measure.statistic](ones, *columns)
    assert again[0] == pytest.approx(measure.score, abs=1e-6)


def test_inference_is_three_folds_of_logistic_regression_on_only_the_dot_product() -> None:
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat(["contradiction", "entailment", "neutral"], 60))
    wanted = np.select([labels == "entailment", labels == "neutral"], [0.9, 0.5], 0.1) + rng.normal(0, 0.15, 180)
    first, second = np.tile([1.0, 0.0], (180, 1)), np.stack([wanted, rng.normal(0, 9, 180)], axis=1)
    outcome = inference_task({"own": first}, {"own": second}, labels)
    right = np.zeros(180)
    for train, test in KFold(3, shuffle=True, random_state=1).split(labels):
        fitted = LogisticRegression(max_iter=10000).fit(wanted[train, None], labels[train])
        right[test] = fitted.predict(wanted[test, None]) == labels[test]
    np.testing.assert_array_equal(outcome.columns["correct"], right)
    assert outcome.measures[0].score == right.mean() > 0.6


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_a_variant_that_has_no_score_is_not_the_best() -> None:
    other, same = np.random.default_rng(0).random((20, 4)), np.ones((20, 4))
    found = similarity_task({"cls": same, "mean": other}, {"cls": same, "mean": other[::-1]}, np.arange(20.0))
    assert found.notes["best"] == "mean" and np.isnan(found.notes["candidates"]["cls"])


@pytest.mark.real_data
def test_the_model_protocol_takes_the_models_own_vectors(model: Path, subset: Path) -> None:
    files = UncheckedFiles(str(subset), subset)
    best = TASKS["STS"].score(files, EncodechkaVectors(Encoder(model), "leaderboard")).notes
    own = TASKS["STS"].score(files, EncodechkaVectors(Encoder(model), "model")).notes
    assert set(best["candidates"]) == {f"{kind}{norm}" for kind in ("cls", "mean", "pooler") for norm in ("", "_norm")}
    assert set(own["candidates"]) == {"own"}


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["factru.json", "rudrec.json"])
def test_words_get_the_tags_of_the_slow_path_on_all_texts(name: str, encodechka_data: Path) -> None:
    data = json.loads((encodechka_data / name).read_text(encoding="utf-8"))
    for text, entities in zip(data["texts"], data["labels"], strict=True):
        assert tagged_words(text, entities) == tags(text, entities)


def test_the_first_word_never_gets_a_tag_and_the_first_entity_wins() -> None:
    text = "Москва и Нижний Новгород"
    entities = [("Loc", 0, 6), ("Loc", 9, 24), ("Org", 16, 24)]
    assert tagged_words(text, entities) == (["Москва", "и", "Нижний", "Новгород"], ["O", "O", "B-Loc", "I-Loc"])


@pytest.mark.real_data
def test_the_folder_comes_from_the_environment(encodechka_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCODECHKA_DATA_PATH", str(encodechka_data))
    folder = EvaluationConfig().encodechka_folder
    assert len(DataFiles(folder, Path("nowhere"))("stsb_dev")) == 1500


@pytest.mark.real_data
def test_a_file_that_is_not_the_benchmarks_is_one_line(encodechka_data: Path, tmp_path: Path) -> None:
    shutil.copyfile(encodechka_data / "toxic_test.csv", tmp_path / "toxic_test.csv")
    with (tmp_path / "toxic_test.csv").open("a") as file:
        file.write("1,ещё одна строка,[],0\n")
    with pytest.raises(UserError, match=r"toxic_test\.csv differs from the benchmark's file \(sha256\)"):
        DataFiles(str(tmp_path), tmp_path)("toxic_test")


def test_no_network_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.suites.encodechka.files.ADDRESS", "http://127.0.0.1:9")  # not listening
    with pytest.raises(UserError, match=r"stsb_dev\.csv can't be downloaded"):
        DataFiles(None, tmp_path / "cache")("stsb_dev")
    assert not list(tmp_path.rglob("*.csv"))


class Slow(BaseHTTPRequestHandler):
    """Serves one small file, and cuts off what is called rudrec.json."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        time.sleep(0.2)
        self.send_response(200)
        self.send_header("Content-Length", str(len(FILE) + self.path.endswith("rudrec.json")))
        self.end_headers()
        self.wfile.write(FILE)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(
            "evaluation.suites.encodechka.files.ADDRESS", f"http://127.0.0.1:{server.server_address[1]}"
        )
        monkeypatch.setitem(SHA256, "stsb_dev.csv", hashlib.sha256(FILE).hexdigest())
        yield
        server.shutdown()


def test_processes_that_need_a_file_at_once_download_it_once(slow_server: None, tmp_path: Path) -> None:
    Slow.asked.clear()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: DataFiles(None, tmp_path / "cache")("stsb_dev"), range(6)))
    assert found == [[{"текст": "У реки стоит мельница."}]] * 6
    assert Slow.asked == ["/stsb_dev.csv"]


def test_a_download_that_breaks_is_one_line_and_leaves_nothing(slow_server: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rudrec\.json can't be downloaded: IncompleteRead"):
        DataFiles(None, tmp_path / "cache")("rudrec.json")
    assert not list(tmp_path.rglob("*rudrec*"))
