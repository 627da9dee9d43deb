"""One command makes what is asked for: implied stages first, training in this process or on ranks."""

import dataclasses
import os
from pathlib import Path

import pytest

from configs.schema.config import SIDES, STAGES, Config
from pipeline.application import LAUNCHED, composed
from pipeline.chain import CHAIN
from pipeline.core.artefact import Manifest, read_manifest
from pipeline.core.errors import UserError
from pipeline.run import is_launched, make, require_packages, require_sets, run
from pipeline.stage import folder_and_manifest, run_stage
from tests.support.runs import run_main


def test_every_stage_is_in_the_chain_after_those_that_it_needs() -> None:
    assert tuple(CHAIN) == STAGES
    config, seen = Config(profile="tiny", run="test"), set[str]()
    for name in (name for name in STAGES if name != "calibrate"):  # its settings name a model
        assert {*CHAIN[name].needs(config)} <= seen, name
        seen.add(name)


def test_what_a_stage_implies_is_made_first_and_logged(tmp_path: Path) -> None:
    first = run_main("profile=tiny", f"runs={tmp_path}", "stages=[data]")
    assert "data needs benchmarks first" in first.out, first
    assert "the reasons in " in first.out and "/ledger.md" in first.out.replace("\n", "")
    assert read_manifest(tmp_path / "tiny" / "benchmarks")


def test_what_a_stage_implies_is_made_unless_it_is_complete_and_never_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[tuple[str, bool]]()
    monkeypatch.setattr("pipeline.run._run_or_launch", lambda stage, config: made.append((stage.name, config.force)))
    config = Config(profile="tiny", run="test", runs=str(tmp_path), force=True)
    folder, manifest = folder_and_manifest(CHAIN["benchmarks"], config)
    folder.path.mkdir(parents=True)
    for status in ("failed", "complete"):
        dataclasses.replace(manifest, status=status).write(folder.path)
        make("data", config)
    assert made == [("benchmarks", False), ("data", True), ("data", True)]


def test_evaluations_that_a_later_try_reaches_rebuild_the_data(tmp_path: Path) -> None:
    config = Config(profile="tiny", run="test", runs=str(tmp_path))

    def fingerprint_of_data(checked: int, missing: int) -> str:
        metrics = {"tasks": checked, "texts": 10 * checked, "not checked": missing}
        Manifest("benchmarks", "complete", "same", {}, {}, metrics=metrics).write(config.folder("benchmarks"))
        return folder_and_manifest(CHAIN["data"], config)[0].fingerprint

    (tmp_path / "test" / "benchmarks").mkdir(parents=True)
    whole = fingerprint_of_data(checked=9, missing=0)
    assert len({whole, fingerprint_of_data(checked=7, missing=2), fingerprint_of_data(checked=8, missing=1)}) == 3
    assert fingerprint_of_data(checked=9, missing=0) == whole


@pytest.mark.parametrize("name", [LAUNCHED, "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"])
def test_under_accelerate_launch_only_training_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not is_launched()
    monkeypatch.setenv(name, "0")
    config = composed("profile=tiny", f"runs={tmp_path}", "stages=[symmetric,merge]")
    with pytest.raises(UserError, match=r"accelerate launch can't make merge .*make merge"):
        run(config)
    config.stages, steps = [*SIDES], list[str]()
    with pytest.raises(UserError, match="symmetric needs the artefact data, which is missing"):
        run(config)
    monkeypatch.setattr("pipeline.run.run_stage", lambda stage, config: steps.append(stage.name))
    monkeypatch.setattr("pipeline.run.leave_ranks", lambda: steps.append("left"))
    run(config)
    assert steps == [*SIDES, "left"] and not os.listdir(tmp_path)


@pytest.mark.parametrize("borrow", [False, True])
def test_stages_are_made_in_the_order_of_their_needs_under_the_command_s_locks(
    borrow: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, held = list[str](), set[str]()

    def make(name: str, config: Config) -> None:
        made.append(name)
        held.update(path.name for path in tmp_path.rglob("*.command.lock"))

    monkeypatch.setattr("pipeline.run.make", make)
    run(
        composed(
            "profile=tiny",
            f"runs={tmp_path}",
            f"stages=[evaluate,merge,{','.join(SIDES)},data,init]",
            f"borrow={borrow}",
        )
    )
    assert made == ["data", "init", *SIDES, "merge", "evaluate"]  # though evaluate can do without a merge
    assert held == (set() if borrow else {f"{name}.command.lock" for name in made})  # sweep jobs wait for each other


def test_a_stage_whose_input_nothing_will_make_is_refused_before_the_others_are_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="merge needs the artefact asymmetric, which is missing"):
        run(composed("profile=tiny", f"runs={tmp_path}", "stages=[data,init,symmetric,merge]"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stage", "launch", "done", "steps"),
    [
        ("base", "auto", False, ["run_stage"]),
        ("symmetric", "none", False, ["run_stage"]),
        ("symmetric", "auto", False, ["is_up_to_date", "prepare_ranks", "launch"]),
        ("symmetric", "auto", True, ["is_up_to_date"]),
    ],
)
def test_only_training_that_is_not_finished_is_launched_and_not_where_the_config_says_none(
    stage: str, launch: str, done: bool, steps: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = list[str]()
    for name in ("run_stage", "is_up_to_date", "prepare_ranks", "launch"):
        monkeypatch.setattr(f"pipeline.run.{name}", lambda stage, _, name=name: bool(taken.append(name)) or done)
    config = Config(profile="tiny", run="test", runs=str(tmp_path), borrow=stage == "base")
    config.launch.config = launch
    make(stage, config)
    assert taken == steps
    assert len(list(tmp_path.glob(".locks/*.lock"))) == config.borrow  # for which other jobs of the sweep wait


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["stages=[data,calibrate]"], "calibration takes one model"),
        (
            ["~data.held_out.test_questions"],
            "set test_questions is not held out (config key evaluation.suite.own.sets); name sets of data.held_out "
            "(wiktionary_guard_terms, wiktionary_guard_usages), or leave the suite out of evaluation.suites",
        ),
        (
            ["evaluation.suites=[vectors]", "+evaluation.suite.vectors.sets.more=questions"],  # trained on
            "set questions is not held out (config key evaluation.suite.vectors.sets)",
        ),
        (["languages=[ru,kz]"], "script of language kz is not known (config key languages); give its ISO"),
        (["init.certify=[none.txt]"], "init: no such file (none.txt); fix init.certify"),
        (["init.corpora.pairs={kind:text,files:[no/*.gz]}"], "no such file (no/*.gz); fix init.corpora.pairs.files"),
        (
            ["stages=[data,merge,evaluate]", "merging.guard_sources=[test_questions,no,nor]"],
            "set no is not held out (config key merging.guard_sources); name sets of data.held_out (test_questions, "
            "wiktionary_guard_terms, wiktionary_guard_usages), or leave it out of merging.guard_sources",
        ),
    ],
)
def test_an_impossible_stage_is_refused_before_anything_is_made(
    tmp_path: Path, overrides: list[str], named: str
) -> None:
    ended = run_main("profile=own", f"runs={tmp_path}", *overrides)
    assert ended.status == 2 and named in ended.err
    assert not any(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("stage", "override", "package"),
    [("symmetric", "training.symmetric.adapter.rank=4", "peft"), ("merge", "merging.compare=[ties]", "mergekit")],
)
def test_a_package_that_a_later_stage_needs_is_missed_before_anything_is_made(
    stage: str, override: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.find_spec", lambda name: None)
    config = composed("profile=tiny", f"runs={tmp_path}", override)
    with pytest.raises(UserError, match=rf"the package {package} is not installed .*-m pip install {package}"):
        run(config)
    config.folder(stage).mkdir(parents=True)
    Manifest(stage, "complete", "made where it was installed", {}, {}).write(config.folder(stage))
    require_packages(config)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["training.asymmetric.dimensions=[33,16]"], "training.asymmetric"),
        (["evaluation.suites=[vectors]", "evaluation.suite.vectors.dimensions=[16,33]"], "evaluation.suite.vectors"),
    ],
)
def test_more_dimensions_than_the_base_has_are_refused_before_data_is_made(
    overrides: list[str], key: str, tmp_path: Path
) -> None:
    ended = run_main("profile=tiny", f"runs={tmp_path}", *overrides)
    assert ended.status == 2 and f"33 dimensions are more than the base's 32 (config key {key}.dimensions)" in ended.err
    assert [path.parent.name for path in tmp_path.rglob("manifest.json")] == ["tiny"]  # the base


def test_only_the_stages_that_are_asked_for_are_checked() -> None:
    asymmetric = [
        "~data.sources.scored",
        "languages=[kz]",
        "merging.guard_sources=[no,nor]",
        "~data.held_out.test_questions",
    ]
    config = composed("profile=own", *asymmetric, "stages=[data,asymmetric]")
    require_sets(config)
    config.stages, config.init.scripts = ["init", "evaluate"], ["Cyrillic"]
    config.evaluation.suites = ["samples"]
    require_sets(config)
    config.evaluation.suites, config.data.held_out = ["own"], {}
    with pytest.raises(UserError, match=r"name sets of data.held_out \(it has none\)"):
        require_sets(config)


def test_a_side_without_sources_is_refused_with_the_way_out_that_it_has() -> None:
    config = composed("profile=own")
    sources, add, alone = config.data.sources, "add sources for this side", ", or train the other side alone: arm="
    for stage, there, remedy in (
        ("symmetric", ["questions"], f"{add}{alone}asymmetric"),
        ("asymmetric", ["scored"], add),
        ("symmetric", [], add),
        ("joint", [], add),
    ):
        config.stages, config.data.sources = [stage], {name: sources[name] for name in there}
        with pytest.raises(UserError, match=f"no pairs to train the stage {stage} on") as refused:
            require_sets(config)
        assert refused.value.remedy == remedy
    config.data.sources = {"questions": sources["questions"]}
    require_sets(config)  # joint takes what there is


def test_sets_by_which_a_stage_can_not_train_are_refused_before_data_is_made() -> None:
    def refused(words: str, *overrides: str) -> None:
        with pytest.raises(UserError, match=words):
            require_sets(composed("profile=own", *overrides))

    zero = "={scored:{weight:0}}"
    refused("no set of this side is called questions", "++training.symmetric.sets={questions:{weight:2}}")
    refused("no set of this side is called paris", "++training.heads.sets={paris:{weight:2}}", "heads=frozen")
    refused("every set of this side has weight 0", f"++training.symmetric.sets{zero}")
    refused("no pairs to train the stage heads on", "~data.sources.questions", "stages=[heads]", "heads=frozen")
    require_sets(composed("profile=own", f"++training.symmetric.sets{zero}", "stages=[asymmetric]"))
    require_sets(composed("profile=own", f"++training.joint.sets{zero}", "stages=[joint]"))


def test_why_a_stage_is_rebuilt_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config(profile="tiny", run="test", runs=str(tmp_path))
    stage = dataclasses.replace(
        CHAIN["base"], version=1, build=lambda config, folder: {}, reads=lambda config: {"file:a": "1"}
    )
    changes = {
        "its settings changed": {"settings": lambda config: "other"},
        "file:a changed": {"reads": lambda config: {"file:a": "2"}},
        "file:b is a new input and file:a is no longer an input": {"reads": lambda config: {"file:b": "1"}},
        "it was made by version 1 of this stage, now 2": {"version": 2},
    }
    for reason, change in changes.items():
        run_stage(stage, dataclasses.replace(config, force=True))
        caplog.clear()
        with caplog.at_level("INFO", logger="pipeline"):
            run_stage(dataclasses.replace(stage, **change), config)
        assert f"again: {reason}" in caplog.text


def test_that_a_file_of_a_stage_was_changed_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config(profile="tiny", run="test", runs=str(tmp_path))
    write = lambda config, folder: {"bytes": (folder.path / "made.txt").write_text("made")}  # noqa: E731
    stage = dataclasses.replace(CHAIN["base"], build=write, reads=lambda config: {})
    run_stage(stage, config)
    (config.folder("base") / "made.txt").write_text("edited")
    with caplog.at_level("INFO", logger="pipeline"):
        run_stage(stage, config)
    assert "again: one of its files was changed, truncated or lost" in caplog.text
