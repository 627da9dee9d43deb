"""The published card's figures next to the run's."""

import csv
from math import nan
from pathlib import Path

import pytest
import yaml

from configs.schema.config import Config
from evaluation.published_scores import CARD_MTEB
from evaluation.report.claims import CLAIMS, COLUMNS, Claim, check_claims, claims_csv, published_base
from evaluation.report.record import RunRecord, read_run
from evaluation.results import Score
from tests.support.runs import read_csv
from tests.support.sample_run import write_run

ROWS = read_csv(CLAIMS)
CARD_TOTAL, CARD_NEGATIVES = 2_240_961, 792_644


def claim(card: str, ours: float | None, tolerance: str = "0") -> Claim:
    return Claim("mteb/x", "x", card, ours, tolerance, "")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return write_run(tmp_path_factory.mktemp("claims"))


@pytest.fixture(scope="module")
def checked(config: Config) -> dict[str, Claim]:
    return {claim.key: claim for claim in check_claims(read_run(config.folder("report").parent))}


@pytest.mark.parametrize(
    ("card", "ours", "tolerance", "verdict"),
    [
        ("0.58", 0.5849, "0", "equal"),
        ("0.58", 0.5851, "0", "differs"),
        ("0.58", 0.5851, "0.01", "close"),
        ("0.58", 0.57, "0.01", "close"),
        ("0.58", 0.5699, "0.01", "differs"),
        ("7470", 7473, "5", "close"),
        ("7470", 7470, "5", "equal"),
        ("0.58", None, "1", "not run"),
    ],
)
def test_a_verdict_follows_from_the_printed_digits_and_the_tolerance(
    card: str, ours: float | None, tolerance: str, verdict: str
) -> None:
    assert claim(card, ours, tolerance).verdict == verdict


def test_the_total_of_pairs_leaves_held_out_sets_out(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    claims = {claim.key: claim for claim in check_claims(run)}
    assert claims["pairs/total"].ours == 1359 + 7473 + 90
    held_out = next(entry for entry in run.training_sets if entry["name"] == "gsm8k_ru")
    held_out["side"] = "held_out"
    claims = {claim.key: claim for claim in check_claims(run)}
    assert claims["pairs/total"].ours == 1359 + 90


def test_the_sizes_of_the_sets_add_up_to_the_card_s_total() -> None:
    sizes = {row["key"]: int(row["card"]) for row in ROWS if row["key"].startswith("pairs/")}
    assert sizes.pop("pairs/total") == CARD_TOTAL == sum(sizes.values())
    negatives = sum(sizes[f"pairs/{name}"] for name in ("allnli", "miracl", "ru_hnp"))
    assert negatives == CARD_NEGATIVES == next(int(row["card"]) for row in ROWS if row["key"] == "negatives/total")


def test_the_sizes_are_those_of_the_source_files(repository: Path) -> None:
    sizes = {row["key"].partition("/")[2]: int(row["card"]) for row in ROWS if row["key"].startswith("pairs/")}
    del sizes["total"]
    for name, size in sizes.items():
        source = yaml.safe_load((repository / "configs" / "source" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert source["card"]["pairs"] == size, name


def test_both_score_tables_have_every_row_for_both_models() -> None:
    keys = {row["key"] for row in ROWS}
    tasks = ["Mean S", "Mean S+W", "STS", "PI", "NLI", "SA", "TI", "IA", "IC", "ICX", "NE1", "NE2"]
    for model in ("bge-m3", "USER-bge-m3"):
        assert keys >= {f"encodechka/{model}/{task}" for task in tasks}
        assert keys >= {f"mteb/{model}/{group}" for group in CARD_MTEB if "without" not in group}


def test_claims_are_found_where_the_run_has_them(checked: dict[str, Claim]) -> None:
    verdicts = {key: checked[key].verdict for key in ("pairs/terra", "pairs/gsm8k_ru", "pairs/gazeta", "pairs/miracl")}
    expected = {"pairs/terra": "equal", "pairs/gsm8k_ru": "close", "pairs/gazeta": "differs"}
    assert verdicts == expected | {"pairs/miracl": "not run"}
    assert checked["pairs/total"].ours == 1359 + 7473 + 90
    assert checked["vocabulary"].ours == 400 and checked["parameters"].ours == 70_384
    assert checked["dimension"].ours == 16
    assert checked["encodechka/USER-bge-m3/STS"].ours == pytest.approx(0.84)


def test_a_group_of_data_sets_is_counted_when_all_of_it_was_scored(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    parts = [(task, names[0]) for task, names in CARD_MTEB["Average"] if task != "RiaNewsRetrieval"]
    run.scores.extend(Score("merge", "card_30", *part, 0.5, nan, nan, 1, 0.0) for part in parts)
    verdicts = {claim.key: claim.verdict for claim in check_claims(run)}
    assert verdicts["tasks/STS"] == verdicts["tasks/Classification"] == "equal"
    assert verdicts["tasks/Retrieval"] == verdicts["tasks/all"] == "not run"  # as their means are


def test_what_was_not_measured_says_why(checked: dict[str, Claim]) -> None:
    assert checked["pairs/miracl"].where == "not among the sources of profile tiny"
    assert checked["encodechka/USER-bge-m3/NLI"].where == "not measured by profile tiny"
    assert checked["usage/0/0"].where == "the published card was not read (evaluation.report.card)"


def test_rows_of_a_bundled_sample_are_labelled(checked: dict[str, Claim]) -> None:
    assert checked["pairs/gsm8k_ru"].where.endswith("(rows of a bundled sample, not of the set)")
    assert checked["pairs/gazeta"].where == "data/ledger.json: gazeta, built"


def test_another_base_is_not_taken_for_bge_m3(checked: dict[str, Claim]) -> None:
    assert checked["encodechka/bge-m3/STS"].verdict == "not run"
    assert checked["encodechka/bge-m3/STS"].where == "BAAI/bge-m3 is not among the models of this run"


@pytest.mark.parametrize(
    ("models", "found"), [(["base", "x"], "base"), (["init", "baai/BGE-M3"], "baai/BGE-M3"), (["init"], None)]
)
def test_bge_m3_is_found_as_the_run_s_base_or_as_a_further_model(models: list[str], found: str | None) -> None:
    scores = [Score(model, "encodechka", "STS", "spearman", 0.8, nan, nan, 1, 0.0) for model in models]
    planned = {"base": {"hub": "BAAI/bge-m3", "kind": "hub"}}
    assert published_base(RunRecord(Path("run"), {}, planned, scores=scores)) == found


def test_the_file_has_every_claim_with_its_verdict(checked: dict[str, Claim]) -> None:
    table = list(csv.DictReader(claims_csv(checked.values()).splitlines()))
    assert tuple(table[0]) == COLUMNS and len(table) == len(ROWS)
    assert {row["verdict"] for row in table} == {"equal", "close", "differs", "not run"}
    assert all(bool(row["ours"]) == (row["verdict"] != "not run") and row["where"] for row in table)
