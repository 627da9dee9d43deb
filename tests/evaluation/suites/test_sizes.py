"""What evaluation will read, from the statistics that mteb bundles."""

from pathlib import Path

import pytest

from configs.schema.evaluation import SuiteConfig
from data.artefact import read_held_out_set
from evaluation.suites.sample_files import read_samples
from evaluation.suites.sizes import CHARACTERS, SuiteSize, suite_size
from pipeline.application import composed
from tests.evaluation.test_evaluate import make_config


def card(suite: str, *overrides: str) -> SuiteSize:
    size = suite_size(suite, composed("profile=bge_m3", *overrides), 512)
    assert size
    return size


def test_the_card_s_corpora_are_counted_with_their_queries_and_cut() -> None:
    ria = card("card_30", "evaluation.tasks=[RiaNewsRetrieval]")
    assert ria.texts == 704_344 + 10_000  # mteb's own numbers, of documents of 1,166 and queries of 62 characters
    tokens = 704_344 * (1165.64 / CHARACTERS + 2) + 10_000 * (62.4 / CHARACTERS + 2)
    assert ria.tokens == pytest.approx(tokens, rel=1e-4)
    long = card("card_30", "evaluation.tasks=[MultiLongDocRetrieval]")
    assert long.texts == 10_000 + 200  # only the Russian subset and the test split
    assert long.squares / long.tokens == pytest.approx(512, rel=0.01)
    assert not card("card_30").unknown and not card("rus_v1_1").unknown


def test_what_is_left_out_is_not_counted() -> None:
    whole, fast = card("card_30"), card("card_30", "evaluation=card_fast")
    assert whole.texts - fast.texts == sum(
        card("card_30", f"evaluation.tasks=[{task}]").texts for task in ("RiaNewsRetrieval", "MultiLongDocRetrieval")
    )


def test_held_out_sets_are_not_known_before_data_and_samples_are(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert suite_size("held_out", config, 128) is None
    samples = suite_size("samples", config, 128)
    assert samples and 300 < samples.texts < 500 and samples.tokens < 128 * samples.texts


def test_held_out_sets_are_counted_once_they_are_built(chain: Path) -> None:
    config = composed("profile=tiny", f"runs={chain}")
    config.evaluation.suite["vectors"] = SuiteConfig("vectors", {"panorama": "panorama"}, dimensions=[16])
    panorama, gsm8k = (read_held_out_set(chain / "tiny/data", name, "asymmetric") for name in ("panorama", "gsm8k_ru"))
    whole, one = suite_size("held_out", config, 512), suite_size("vectors", config, 512)
    texts = {*panorama.anchors, *panorama.positives}
    assert whole and whole.texts == len(texts | {*gsm8k.anchors, *gsm8k.positives})
    sts = {row[key] for row in read_samples("sts") for key in ("sentence1", "sentence2")}
    assert one and one.texts == len(texts | sts)  # once, whatever the forms of their vectors
