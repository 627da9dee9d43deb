"""The stage `report` on a small run's artefacts, whole and partial."""

import dataclasses
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from configs.schema.config import Config
from evaluation.report import format
from evaluation.report.about_results import direction, scores, ways_to_search
from evaluation.report.about_run import _sources
from evaluation.report.about_training import dev_chart, peaks
from evaluation.report.record import RunRecord, read_run
from evaluation.results import Difference, Score
from pipeline.application import composed
from pipeline.chain import CHAIN
from pipeline.core.artefact import read_manifest
from pipeline.stage import is_up_to_date, read_finished, run_stage
from tests.support.sample_run import CHAIN_INPUTS, SAMPLE_SCORES, finish, run_config, write_run

SHOWN = ("base", "symmetric", "asymmetric", "merge")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = write_run(tmp_path_factory.mktemp("runs"))
    run_stage(CHAIN["report"], config)
    return config


@pytest.fixture(scope="module")
def page(whole: Config) -> str:
    return (whole.folder("report") / "index.html").read_text(encoding="utf-8")


def visible(html: str) -> str:
    """The text of a page without tags, attributes and style."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text)


def reported(config: Config) -> str:
    """Make the report; the text of its page."""
    run_stage(CHAIN["report"], config)
    return visible((config.folder("report") / "index.html").read_text(encoding="utf-8"))


def interval(task: str, model: str) -> str:
    """A score of the sample run on encodechka as the page shows it."""
    score = next(found[model] for (_, name, _), found in SAMPLE_SCORES.items() if name == task)
    return f"{score:.3f} {score - 0.02:.3f} to {score + 0.02:.3f}"


def many_models(models: int, tasks: int) -> RunRecord:
    """A run that scores many models, all of which are compared."""
    names = ["base", "merge", *(f"organisation/model-{number}" for number in range(models - 2))]
    places = [("own", f"task {number}", "ndcg_at_10") for number in range(tasks)]
    scored = [Score(name, *place, 0.5, 0.4, 0.6, 9, 1.0) for place in places for name in names]
    gain = (0.01, -0.01, 0.03, 0.2, 0.4, "permutation", 9, True)
    pairs = [(later, earlier) for earlier, later in combinations(names, 2)]
    compared = [Difference(*pair, *place, *gain) for place in places for pair in pairs]
    planned = {"evaluation": {"suite": {"own": {"kind": "retrieval"}}}}
    return RunRecord(Path("runs/many"), {}, planned, scores=scored, differences=compared)


def test_scores_are_not_searched_for_every_cell() -> None:
    """40 models on 300 tasks have 36,000 cells."""
    passes = list[int]()

    class Counted(list[Score]):
        def __iter__(self) -> Iterator[Score]:
            passes.append(1)
            return super().__iter__()

    run = many_models(models=6, tasks=50)
    run = dataclasses.replace(run, scores=Counted(run.scores))
    ((suite, models, rows),) = run.suite_tables()
    assert (suite, len(models), len(rows)) == ("own", 6, 50) and len(passes) < 10
    assert [cell.model for cell in rows[-1][-1] if cell] == models


def test_of_very_many_differences_the_page_shows_those_of_merge_and_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 models on 40 tasks of three metrics have 93,600, which make a page of 21 MB."""
    run = many_models(models=6, tasks=10)
    assert "All 150 paired differences" in str(scores(run).blocks[-1])
    monkeypatch.setattr("evaluation.report.about_results.MOST_DIFFERENCES", 149)
    shown = str(scores(run).blocks[-1])
    assert "Paired differences from merge or base; comparison.csv has all 150" in shown
    assert shown.count('<th scope="row">') == 10 * (5 + 4)


def test_a_model_is_taken_for_a_mode_of_another_only_by_its_whole_ending() -> None:
    place, models = ("own", "questions", "ndcg_at_10"), ("v1", "v1.sparse", "v1.5", "sparse")
    made = [Score(model, *place, 0.5, 0.4, 0.6, 9, 1.0) for model in models]
    gains = {"v1.sparse": 0.125, "v1.5": 0.25, "sparse": 0.375}
    compared = [Difference(name, "v1", *place, gain, 0, 1, 1, 1, "none", 9, True) for name, gain in gains.items()]
    planned = {"evaluation": {"suite": {"own": {"kind": "retrieval"}}}}
    run = RunRecord(Path("runs/own"), {}, planned, scores=made, differences=compared)
    assert run.models() == ["v1", "v1.5", "sparse"]
    ((columns, rows),) = ways_to_search(run, "{}").values()
    assert {row[0]: row[columns.index("ndcg_at_10 − dense")][:6] for row in rows} == {
        "v1": "–", "v1.sparse": "+0.125", "v1.5": "–", "sparse": "–"
    }  # fmt: skip


def test_a_negative_score_has_the_minus_of_the_differences_next_to_it() -> None:
    found = Score("merge", "vectors", "sts-16-binary", "spearman", -0.25, -0.5, 0.125, 60, 1.0)
    assert format.score(found, "{} [{}, {}]") == "−0.250 [−0.500, 0.125]"


def test_a_task_whose_items_are_unknown_has_no_items(whole: Config) -> None:
    run = read_run(whole.folder("report").parent)
    shown = {}
    for items in (0, 60):
        of_items = [dataclasses.replace(score, items=items) for score in run.scores]
        shown[items] = str(scores(dataclasses.replace(run, scores=of_items)))
    assert " items" not in shown[0] and "60 items" in shown[60]


def test_a_local_file_is_named_once_and_a_bundled_sample_is_not_called_the_real_set(whole: Config) -> None:
    run = read_run(whole.folder("report").parent)
    own = run.sets[0] | {"source": "a.jsonl", "revision": "local a.jsonl", "licence": "mine"}
    sample = run.sets[0] | {"source": "someone/terra", "revision": "mirror of main", "licence": "CC-BY-NC-4.0"}
    run = dataclasses.replace(run, ledger={"sets": [own, sample]})
    text = str(_sources(run))
    assert text.count("a.jsonl") == 1
    assert "in the layout of someone/terra" in text and "CC-BY-NC-4.0" not in text


def test_a_complete_run_has_page_card_and_claims(whole: Config) -> None:
    manifest = read_manifest(whole.folder("report"))
    assert manifest and manifest.status == "complete"
    assert set(manifest.outputs) == {"index.html", "model_card.md", "claims.csv"}
    assert set(manifest.inputs) == {"data", "init", "symmetric", "asymmetric", "merge", "evaluate"}


def test_the_page_shows_the_artefacts_figures(whole: Config, page: str) -> None:
    text = visible(page)
    ledger = json.loads((whole.folder("data") / "ledger.json").read_text())
    for entry in ledger["sets"]:
        assert f"{entry['built']:,}" in text and f"{entry['kept']:,}" in text
    for stage in ("data", "init", "merge", "evaluate"):
        manifest = read_manifest(whole.folder(stage))
        assert manifest and manifest.fingerprint[:10] in text
    sizes = ("2,000", "400", "70,384", "11,912", "390 380 9,000 100.0 %")
    for figure in (*sizes, "512,345", "3.1 %", "4 min 01 s", "1.24 GB"):
        assert figure in text, figure
    headline = "R@1, term to definition, base → merge 0.300 → 0.340 +0.040, 95 % interval +0.027 to +0.053"
    for score in (
        "term_to_definition recall_at_1, 1,500 items",
        "0.340 0.320 to 0.360",
        headline,
        "+0.0400",
        "+0.0270 to +0.0530",
        "&lt; 0.001",
    ):
        assert score in text, score


def test_the_card_s_tables_are_next_to_the_run_s_models_with_the_direction(page: str) -> None:
    text = visible(page)
    ours = {task: " ".join(interval(task, model) for model in SHOWN) for task in ("STS", "TI")}
    assert f"STS rises: holds 0.86 0.87 {ours['STS']}" in text
    assert f"TI unchanged: does not hold 0.97 0.97 {ours['TI']}" in text
    assert "Retrieval by Recall@100 falls: not run 0.945 0.934 – – – –" in text


def test_the_base_s_own_published_figures_are_next_to_it(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    config.base.kind, config.base.hub = "hub", "intfloat/multilingual-e5-small"
    for name in CHAIN_INPUTS:
        finish(config, name, {})
    text = reported(config)
    assert "USER-bge-m3, card multilingual-e5-small, published our base" in text
    assert f"STS rises: holds 0.86 0.87 0.820 {interval('STS', 'base')}" in text
    assert "Mean S rises: not run 0.787 0.799 0.742 –" in text
    assert (
        "MultilabelClassification rises: not run 0.343 0.359 0.324 –" in text
    )  # the mean of two tasks' published figures
    assert "Classification rises: not run 0.571 0.594 – –" in text  # not all of its tasks were published


@pytest.mark.parametrize(
    ("change", "base", "merge", "verdict"),
    [
        (0.01, 0.5, 0.6, "holds"),
        (0.01, 0.5, 0.4, "does not hold"),
        (-0.01, 0.5, 0.4, "holds"),
        (0.01, 0.5, 0.5, "does not hold"),
        (0.0, 0.5, 0.5099, "holds"),
        (0.0, 0.5, 0.4899, "does not hold"),
        (0.01, None, 0.5, "not run"),
    ],
)
def test_a_direction_is_confirmed_when_both_move_the_same_way(
    change: float, base: float | None, merge: float | None, verdict: str
) -> None:
    assert direction(change, base, merge, 0.01) == verdict


def test_a_move_inside_the_interval_is_called_noise(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    comparison = config.folder("evaluate") / "comparison.csv"
    comparison.write_text(comparison.read_text().replace("0.027", "-0.027"), encoding="utf-8")
    finish(config, "evaluate", {})
    text = reported(config)
    assert f"STS rises: holds (within noise) 0.86 0.87 {interval('STS', 'base')}" in text


def test_the_same_artefacts_yield_the_same_bytes(whole: Config, caplog: pytest.LogCaptureFixture) -> None:
    before = read_manifest(whole.folder("report"))
    with caplog.at_level("INFO", logger="pipeline"):
        again = run_stage(CHAIN["report"], dataclasses.replace(whole, force=True))
    assert (
        f"open {whole.folder('report') / 'index.html'}; the model is {whole.folder('merge') / 'model'}" in caplog.text
    )
    assert before and again.outputs == before.outputs


def test_names_from_artefacts_are_escaped(page: str) -> None:
    assert "Wiktionary &lt;terms&gt;" in page and "<terms>" not in page


def test_the_page_loads_nothing_from_outside(page: str) -> None:
    loaded = re.findall(r"<(?:script|iframe|object|embed)\b|\bsrc=\"(?!data:)|@import|url\((?!data:)", page)
    assert loaded == []
    assert re.findall(r"<link[^>]*>", page) == ['<link rel="icon" href="data:,">']
    assert "default-src 'none'" in page


def test_the_page_can_be_read_without_seeing_it(page: str) -> None:
    assert '<html lang="en">' in page and page.count("<h1>") == 1
    assert all('alt="' in image and 'alt=""' not in image for image in re.findall(r"<img[^>]*>", page))
    assert all("aria-label=" in chart for chart in re.findall(r"<svg[^>]*>", page))
    assert page.count("<table>") == page.count("<caption>")
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors == set(re.findall(r'<section id="([^"]+)"', page))


def test_a_partial_run_shows_the_rest_as_not_run(tmp_path: Path) -> None:
    config = write_run(tmp_path, stages=("data", "init"))
    manifest = run_stage(CHAIN["report"], config)
    assert manifest.metrics["stages"] == "2 of 6 complete" and "model_card.md" not in manifest.outputs
    text = visible((config.folder("report") / "index.html").read_text(encoding="utf-8"))
    assert "Not run: this part needs the stage merge" in text
    assert "Not run: this part needs the stage data" not in text


def test_a_merge_that_is_not_a_weighted_sum_and_tried_nothing_is_shown(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    folder = config.folder("merge")
    (folder / "weights.json").write_text('{"method": "ties", "models": ["init"], "weights": null, "dtype": "float32"}')
    (folder / "search.csv").write_text("origin\n")
    (folder / "simplex.svg").unlink()
    finish(config, "merge", {})
    text = reported(config)
    assert "Merge method ties" in text and "candidates" not in text.partition("Merge method ties")[2][:60]
    assert "The models were merged by ties, through mergekit." in (config.folder("report") / "model_card.md").read_text(
        encoding="utf-8"
    )


def test_a_failed_stage_and_its_reason_are_shown(tmp_path: Path) -> None:
    config = write_run(tmp_path, stages=("data",))
    config.folder("init").mkdir()
    finish(config, "init", {}, status="failed")
    manifest = read_manifest(config.folder("init"))
    assert manifest
    dataclasses.replace(manifest, error="error: no texts (corpus x); add some").write(config.folder("init"))
    text = reported(config)
    assert "Stage init failed: error: no texts (corpus x); add some" in text


def test_gpu_driver_its_memory_and_the_commit_of_the_code_are_shown(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    manifest = read_manifest(config.folder("symmetric"))
    assert manifest
    manifest.environment |= {"gpu": "NVIDIA H100 80GB HBM3", "gpu_driver": "550.54.15", "commit": "abcdef0123" * 4}
    dataclasses.replace(manifest, peak_gpu_bytes=71_500_000_000).write(config.folder("symmetric"))
    text = reported(config)
    assert "NVIDIA H100 80GB HBM3, driver 550.54.15 abcdef0123" in text and "1.24 GB GPU 71.50 GB" in text
    assert "data, init, symmetric, asymmetric, merge, evaluate torch 2.13.0, numpy 2.4.6" in text


def test_a_stage_made_with_an_earlier_input_is_marked(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    manifest = read_manifest(config.folder("merge"))
    assert manifest
    dataclasses.replace(manifest, fingerprint="f" * 48).write(config.folder("merge"))
    text = reported(config)
    of = f"PROFILE={config.profile} RUN={config.run}"
    assert f"out of date: evaluate (of an earlier merge). To bring them up to date: make reproduce {of}." in text


def test_the_report_is_rebuilt_when_a_stage_appears(tmp_path: Path) -> None:
    partial = write_run(tmp_path / "partial", stages=("data",))
    more = write_run(tmp_path / "more", stages=("data", "init"))
    assert run_stage(CHAIN["report"], partial).fingerprint != run_stage(CHAIN["report"], more).fingerprint


def test_an_empty_run_has_every_claim_as_not_run(tmp_path: Path) -> None:
    manifest = run_stage(CHAIN["report"], run_config(tmp_path, data=composed("profile=tiny").data))
    assert manifest.metrics["stages"] == "0 of 6 complete"
    assert manifest.metrics["claims not run"] == 79 and manifest.metrics["claims differs"] == 0
    text = visible((tmp_path / "sample" / "report" / "index.html").read_text(encoding="utf-8"))
    assert text.count("Not run: this part needs the stage") == 6


def test_the_card_next_to_the_merged_weights_leaves_the_merge_complete(whole: Config) -> None:
    readme = whole.folder("merge") / "model" / "README.md"
    assert readme.read_bytes() == (whole.folder("report") / "model_card.md").read_bytes()
    manifest = read_manifest(whole.folder("merge"))
    assert manifest and read_finished(whole.folder("merge"), manifest.fingerprint) == manifest


def test_a_card_removed_with_a_rebuilt_merge_is_written_again(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    run_stage(CHAIN["report"], config)
    readme = config.folder("merge") / "model" / "README.md"
    readme.unlink()
    assert not is_up_to_date(CHAIN["report"], config)
    run_stage(CHAIN["report"], config)
    assert readme.read_bytes() == (config.folder("report") / "model_card.md").read_bytes()
    assert is_up_to_date(CHAIN["report"], config)


def test_a_run_of_own_data_is_not_compared_with_the_published_card(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    ledger = config.folder("data") / "ledger.json"
    account = json.loads(ledger.read_text(encoding="utf-8"))
    own = [{**line, "card": None, "status": "not on the card"} for line in account["sets"]]
    own[0]["status"] = "skipped: no such file"
    ledger.write_text(json.dumps({**account, "sets": own}), encoding="utf-8")
    finish(config, "data", {})
    manifest = run_stage(CHAIN["report"], config)
    assert set(manifest.outputs) == {"index.html", "model_card.md"} and "claims equal" not in manifest.metrics
    page = (config.folder("report") / "index.html").read_text(encoding="utf-8")
    text = visible(page)
    assert "skipped: no such file" in text
    for words in (
        "BAAI/bge-m3",
        "USER-bge-m3",
        "published card",
        "Claims",
        "not on the card",
        "the card counts",
        "counted by the card",
        "card&#39;s",
    ):
        assert words not in text, words
    assert 'id="card"' not in page and 'id="claims"' not in page
    assert "bge-m3" not in (config.folder("report") / "model_card.md").read_text(encoding="utf-8")


def test_left_out_negatives_are_not_dropped_pairs_nor_rows_with_other_labels_built_ones(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    ledger = config.folder("data") / "ledger.json"
    account = json.loads(ledger.read_text(encoding="utf-8"))
    account["sets"][0]["dropped"] = {"too short": 7, "negatives, empty or equal to the positive": 5200}
    account["sets"][0]["scored"] = 24
    ledger.write_text(json.dumps(account), encoding="utf-8")
    finish(config, "data", {})
    text = reported(config)
    assert "5,200" in text and "5,207" not in text
    assert "in addition, rows with other labels 24 kept by cleaning" in text


def test_where_the_base_was_not_scored_init_replaces_it(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    evaluate = config.folder("evaluate")
    scores, differences = Score.read(evaluate / "scores.csv"), Difference.read(evaluate / "comparison.csv")
    Score.write(evaluate / "scores.csv", [score for score in scores if score.model != "base"])
    Difference.write(evaluate / "comparison.csv", [dataclasses.replace(found, against="init") for found in differences])
    finish(config, "evaluate", {})
    text = reported(config)
    for suite in ("wiktionary", "encodechka"):
        assert text.count(f"Merge minus init on {suite}, with 95 % intervals; grey") == 1
    assert "minus base" not in text
    shown = " ".join(interval("STS", model) for model in ("init", *SHOWN[1:]))
    assert f"STS rises: holds 0.86 0.87 {shown}" in text and "our init our symmetric" in text
    assert "init → merge 0.300 → 0.340 +0.040, 95 % interval +0.027 to +0.053" in text
    card = (config.folder("report") / "model_card.md").read_text(encoding="utf-8")
    assert "### Merge against init" in card and "| term_to_definition | wiktionary | recall_at_1 | +0.040 |" in card


def test_the_merge_s_weights_and_scores_have_their_own_names_and_a_gain_looks_like_one(page: str) -> None:
    columns = ["weight of init", "weight of symmetric", "weight of asymmetric", "dev", "dev symmetric"]
    head = " ".join([*columns, "dev asymmetric", "guard: gain +, loss − allowed"])
    text = visible(page)
    assert text.count(head) == 2  # what was compared, and every candidate
    assert "search * 0.5000 0.2500 0.2500 0.6500 0.6000 0.7000 −0.0040 (−0.0110 to +0.0020) yes" in text


def test_the_guard_s_interval_is_next_to_its_gain_and_no_guard_is_called_that(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    weights = config.folder("merge") / "weights.json"
    found = json.loads(weights.read_text(encoding="utf-8"))
    found["compared"]["search"] |= {"guard_loss": -0.02, "guard_loss_low": -0.05, "guard_loss_high": 0.01}
    found["compared"]["init"] |= {"guard_loss": None, "allowed": None}
    weights.write_text(json.dumps(found), encoding="utf-8")
    finish(config, "merge", {})
    text = reported(config)
    assert "0.6500 0.6000 0.7000 +0.0200 (−0.0100 to +0.0500) yes" in text
    assert "init 1.0000 0.0000 0.0000 0.6000 0.6000 0.6000 – not guarded" in text


def test_peaks_of_the_loss_are_named_by_their_sets(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    curve = config.folder("symmetric") / "metrics.jsonl"
    lines = [json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["step"] in (150, 250) and "loss" in line:
            line |= {"loss": 2.75, "set": "rcb" if line["step"] == 150 else None}
    curve.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    finish(config, "symmetric", {})
    text = reported(config)
    named = "Peaks: 2.75 at step 150 (rcb); 2.75 at step 250 (several sets)."
    assert f"Training loss; mean and range of neighbouring steps. {named}" in text and text.count("Peaks") == 1


def test_every_dev_set_has_a_line_that_differs_from_the_others(tmp_path: Path) -> None:
    names = ["dev_score", *(f"dev_set_{number}_score" for number in range(14))]
    steps = [{"step": step} | {name: step / 100 for name in names} for step in (10, 20)]
    chart = str(dev_chart(RunRecord(tmp_path, {}, curves={"asymmetric": steps}), "asymmetric"))
    styles = re.findall(r"<polyline [^>]*(stroke=[^/]*)/>", chart)
    assert len(styles) == len(set(styles)) == 15
    keys = dict(re.findall(r'class="key" style="([^"]+)">([^<]+)<', chart))
    assert list(keys.values()) == ["mean", *(f"set {number}" for number in range(14))]


def test_a_loss_that_falls_fast_at_its_start_has_no_peak_there() -> None:
    falling = [(step, 3 / step) for step in range(1, 100)]
    assert peaks(falling) == [] and peaks([]) == [] and peaks([(1, 2.0)]) == []
    assert peaks([*falling[:49], (50, 1.0), *falling[50:]]) == [(50, 1.0)]
