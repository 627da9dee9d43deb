"""`make settings`: every setting of the schema is listed, with its own rule, default and comment."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from configs.schema.config import Config
from evaluation.evaluate import task_names
from pipeline.application import composed
from pipeline.settings import settings_of, show
from tests.support.runs import run_main


@pytest.fixture(scope="module")
def demo() -> Config:
    return composed("profile=demo")


@pytest.fixture
def shown(demo: Config, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def output(words: str) -> str:
        show(words, demo)
        return capsys.readouterr().out

    return output


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value and "prompts" not in name:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_value_of_the_config_is_a_setting_with_a_meaning() -> None:
    settings = {each.key: each for each in settings_of(Config)}
    by_name = {key.partition(".<name>")[0] for key in settings if "<name>" in key}
    assert set(leaves(asdict(Config()))) == {key for key in settings if "<name>" not in key} | by_name
    assert [key for key, each in settings.items() if not each.meaning] == []


def test_a_setting_has_type_bounds_default_and_the_profile_s_value(shown: Callable[[str], str]) -> None:
    out = shown("training.symmetric.")
    line = "  training.symmetric.warmup: float, at least 0 and below 1; default 0.1\n      share of the steps\n"
    assert line in out and "training.asymmetric" not in out
    assert "  training.symmetric.batch_size: int, at least 1; default 256, in profile demo 32\n" in out
    assert "  training.symmetric.max_steps: int or null, at least 1; default null, in profile demo 80\n" in out


def test_any_name_may_replace_one_of_the_config(shown: Callable[[str], str]) -> None:
    assert "  data.sources.terra.revision: str; default main, in profile demo refs/convert/parquet\n" in shown(
        "data.sources.terra.rev"
    )
    assert "  data.sources.terra.also.<number>.hub: str" in shown("data.sources.terra.also")
    assert "  data.sources.unheard_of.repeat: int, at least 1; default 1\n" in shown("data.sources.unheard_of")


def test_words_from_the_middle_of_a_key_find_it(shown: Callable[[str], str]) -> None:
    out = shown("negative_margin")
    assert out.count("default") == 3  # of three sides
    assert "training.joint.false_negative_margin: float or null" in out


def test_the_command_takes_words_among_overrides_and_refuses_unknown_ones_in_one_line(tmp_path: Path) -> None:
    refused = run_main("profile=demo", "no_such_thing", f"runs={tmp_path}", module="pipeline.settings")
    assert refused.status == 2
    assert refused.err == "error: no such setting (KEY=no_such_thing); make settings lists all of them\n"


def test_a_name_in_a_key_may_have_a_hyphen(tmp_path: Path) -> None:
    ended = run_main("data.sources.my-set.side", "profile=demo", f"runs={tmp_path}", module="pipeline.settings")
    assert ended.status == 0 and "data.sources.my-set.side: str" in ended.out


def test_all_of_them_are_listed_once_with_groups_and_files(shown: Callable[[str], str]) -> None:
    out = shown("")
    assert "  training.joint.*: same as training.symmetric.*" in out and "training.joint.warmup:" not in out
    assert "  profile: bge_m3, bge_m3_ours, demo, e5_small" in out


def test_tasks_have_names_before_anything_is_made(demo: Config) -> None:
    names = task_names(demo)
    assert names["encodechka"] == ["STS", "PI", "NLI", "SA", "TI", "IA", "IC", "ICX", "NE1", "NE2"]
    assert names["wiktionary"] == ["term_to_definition"] and len(names["card_30"]) == 30
    assert names["vectors"][:2] == ["term_to_definition-full", "term_to_definition-256"] and len(names["vectors"]) == 24
