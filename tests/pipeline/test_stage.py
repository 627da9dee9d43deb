"""Artefacts are made once, whole, and under a lock."""

import dataclasses
import fcntl
import gc
import json
import multiprocessing
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from filelock import FileLock

from configs.schema.config import Config, LaunchConfig
from configs.schema.training import SideConfig
from pipeline.core.artefact import (
    PARTIAL,
    UNITS,
    Manifest,
    StageFolder,
    json_sha256,
    read_manifest,
    replacing,
    result_settings,
)
from pipeline.core.errors import UserError
from pipeline.stage import Stage, imported, is_up_to_date, prepare_ranks, run_stage


def make_config(runs: Path, **changes: object) -> Config:
    return dataclasses.replace(Config(profile="tiny", run="test", runs=str(runs)), **changes)


def write_text(text: str):
    def build(config: Config, stage: StageFolder) -> dict[str, object]:
        with stage.replacing("model/weights.txt") as path:
            path.write_text(text)
        return {"letters": len(text)}

    return build


def stage_writing(text: str, **changes: object) -> Stage:
    stage = Stage("merge", 1, write_text(text), lambda config: {"text": text})
    return dataclasses.replace(stage, **changes)


def failing(config: Config, stage: StageFolder) -> dict[str, object]:
    with stage.replacing("model") as folder:
        folder.mkdir()
        (folder / "weights.txt").write_text("half")
        raise UserError("no good", where="here", remedy="fix it")


def test_an_option_that_is_off_is_in_no_fingerprint() -> None:
    """What was made before the option existed stays finished."""
    before = result_settings(SideConfig())
    assert "temperature" in before and "dimensions" not in before
    assert result_settings(SideConfig(dimensions=[8])) == before | {"dimensions": [8]}


@dataclasses.dataclass
class Settings:
    weight: int = 2
    shown: bool = dataclasses.field(default=True, metadata={"result": False})


def test_a_fingerprint_is_of_what_changes_the_result_in_any_order() -> None:
    assert result_settings({"side": [Settings()]}) == {"side": [{"weight": 2}]}
    assert json_sha256({"a": 1, "b": 2}) == json_sha256({"b": 2, "a": 1}) != json_sha256({"a": 2, "b": 1})


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"of": "another program"}'])
def test_a_manifest_that_can_t_be_read_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    assert read_manifest(tmp_path) is None and read_manifest(tmp_path / "manifest.json") is None


def test_a_manifest_is_parsed_once_and_again_after_it_was_replaced(tmp_path: Path) -> None:
    for fingerprint in ("one", "two"):  # of the same length, written at the same moment
        Manifest("merge", "complete", fingerprint, {}, {}).write(tmp_path)
        os.utime(tmp_path / "manifest.json", ns=(0, 0))
        found = read_manifest(tmp_path)
        assert found and found.fingerprint == fingerprint and read_manifest(tmp_path) is found


def test_a_complete_artefact_has_a_manifest_with_every_output(tmp_path: Path) -> None:
    manifest = run_stage(stage_writing("abc"), make_config(tmp_path))
    assert read_manifest(tmp_path / "test/merge") == manifest
    assert manifest.status == "complete"
    assert manifest.outputs["model/weights.txt"]["bytes"] == 3
    assert manifest.metrics == {"letters": 3}
    assert manifest.peak_rss_bytes > 1e6 and manifest.environment["packages"]["torch"]


def test_a_complete_artefact_is_not_made_again(tmp_path: Path) -> None:
    run_stage(stage_writing("abc"), make_config(tmp_path))
    assert run_stage(stage_writing("abc", build=failing), make_config(tmp_path)).status == "complete"


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_text("abcd"), lambda path: os.truncate(path, 2)]
)
def test_a_missing_output_or_one_of_another_size_makes_it_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    run_stage(stage_writing("abc"), make_config(tmp_path))
    damage(tmp_path / "test/merge/model/weights.txt")
    run_stage(stage_writing("abc"), make_config(tmp_path))
    assert (tmp_path / "test/merge/model/weights.txt").read_text() == "abc"


def test_a_failed_remake_keeps_the_earlier_artefact_and_going_back_restores_it(tmp_path: Path) -> None:
    first = run_stage(stage_writing("abc"), make_config(tmp_path))
    with pytest.raises(UserError):
        run_stage(stage_writing("xyz", build=failing), make_config(tmp_path))
    failed = read_manifest(tmp_path / "test/merge")
    assert failed and failed.status == "failed" and failed.error == "error: no good (here); fix it"
    assert not list((tmp_path / "test").rglob(f"*{PARTIAL}"))
    assert run_stage(stage_writing("abc", build=failing), make_config(tmp_path)) == first
    assert read_manifest(tmp_path / "test/merge") == first
    assert (tmp_path / "test/merge/model/weights.txt").read_text() == "abc"


def test_a_rank_that_follows_takes_what_is_finished_but_builds_along_when_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_writing("abc", name="symmetric")
    run_stage(stage, make_config(tmp_path))
    monkeypatch.setattr("pipeline.stage.is_main_process", lambda: False)
    stage = dataclasses.replace(stage, build=failing)
    assert run_stage(stage, make_config(tmp_path)).status == "complete"
    with pytest.raises(UserError, match="no good"):  # rank 0 would wait for it
        run_stage(stage, make_config(tmp_path, force=True))


def test_a_missing_output_outside_the_folder_makes_it_again(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    stage = stage_writing("abc", extra_outputs=lambda config: [outside])
    outside.touch()
    run_stage(stage, make_config(tmp_path))
    assert run_stage(dataclasses.replace(stage, build=failing), make_config(tmp_path)).status == "complete"
    outside.unlink()
    with pytest.raises(UserError, match="no good"):
        run_stage(dataclasses.replace(stage, build=failing), make_config(tmp_path))


def test_another_seed_makes_another_artefact(tmp_path: Path) -> None:
    first, same, other = (run_stage(stage_writing("abc"), make_config(tmp_path, seed=seed)) for seed in (1, 1, 2))
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_an_input_that_is_not_complete_is_named(tmp_path: Path) -> None:
    stage = stage_writing("abc", needs=lambda config: ["init"])
    with pytest.raises(UserError, match=r"needs the artefact init, which is missing.*make init"):
        run_stage(stage, make_config(tmp_path))
    with pytest.raises(UserError, match="no good"):
        run_stage(dataclasses.replace(stage_writing("one", build=failing), name="init"), make_config(tmp_path))
    with pytest.raises(UserError, match=r"needs the artefact init, which is failed"):
        run_stage(stage, make_config(tmp_path))


def test_a_changed_input_makes_the_stages_after_it_again(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    after = stage_writing("abc", needs=lambda config: ["init"])
    before = dataclasses.replace(stage_writing("one"), name="init")
    fingerprints = []
    for text in ("one", "two"):
        run_stage(dataclasses.replace(before, settings=lambda config, text=text: text), config)
        fingerprints.append(run_stage(after, config).fingerprint)
    assert fingerprints[0] != fingerprints[1]


@pytest.mark.parametrize(
    ("edited", "verified", "refused"), [("xyz", None, True), ("xyz", 3, True), ("xyz", 2, False), ("wxyz", 2, True)]
)
def test_an_input_of_which_a_file_was_edited_is_refused_but_for_large_ones_of_the_same_size(
    tmp_path: Path, edited: str, verified: int | None, refused: bool
) -> None:
    config = make_config(tmp_path)
    run_stage(dataclasses.replace(stage_writing("abc"), name="init"), config)
    (tmp_path / "test/init/model/weights.txt").write_text(edited)
    reader = stage_writing("abc", needs=lambda config: ["init"], verified=verified)
    if refused:
        for begin in (run_stage, prepare_ranks):
            with pytest.raises(UserError, match=r"merge needs init, but one of its files was changed.*weights.txt\)"):
                begin(reader, config)
    else:
        assert run_stage(reader, config).status == "complete"


def test_a_second_writer_stops_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", None)  # it neither waits nor helps: no other machine was launched
    (tmp_path / "test/.locks").mkdir(parents=True)
    with FileLock(tmp_path / "test/.locks/merge.lock"):
        with pytest.raises(UserError, match="another process is writing"):
            run_stage(stage_writing("abc", assist=failing), make_config(tmp_path))


@pytest.mark.parametrize(
    ("name", "nodes", "begin"), [("base", 1, run_stage), ("merge", 2, run_stage), ("merge", 2, is_up_to_date)]
)
def test_a_base_that_another_run_makes_and_what_another_machine_makes_are_waited_for(
    name: str, nodes: int, begin: Callable[[Stage, Config], object], tmp_path: Path
) -> None:
    config = make_config(tmp_path, launch=LaunchConfig(nodes=nodes))
    folder = config.folder(name)
    (folder.parent / ".locks").mkdir(parents=True)
    with (folder.parent / f".locks/{folder.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.1, fcntl.flock, [held, fcntl.LOCK_UN]).start()
        begin(dataclasses.replace(stage_writing("abc"), name=name), config)


@pytest.mark.parametrize("failure", [UserError("no good", where="here", remedy="fix it"), OSError(28, "No space")])
def test_another_machine_works_on_units_while_a_stage_is_made_and_takes_what_was_made(
    failure: Exception, tmp_path: Path
) -> None:
    config, begun, helped = make_config(tmp_path, launch=LaunchConfig(nodes=2)), threading.Event(), threading.Event()

    def build(config: Config, stage: StageFolder) -> dict[str, object]:
        begun.set()
        return {"helped": str(helped.wait(10))}

    def assist(config: Config, stage: StageFolder) -> None:
        helped.set()
        raise failure  # which the machine that makes it will meet, too

    stage = stage_writing("abc", build=build, assist=assist)
    maker = threading.Thread(target=run_stage, args=(stage, config))
    maker.start()
    assert begun.wait(10)
    assert run_stage(dataclasses.replace(stage, build=failing), config).metrics == {"helped": "True"}
    maker.join()


def sleeping(config: Config, stage: StageFolder) -> dict[str, object]:
    (stage.path / "checkpoint").write_text("left")
    time.sleep(60)
    return {}


def test_a_killed_attempt_is_resumed_and_its_lock_does_not_stay(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=run_stage, args=(stage_writing("abc", build=sleeping), make_config(tmp_path))
    )
    process.start()
    while not (tmp_path / "test/merge/checkpoint").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    killed = read_manifest(tmp_path / "test/merge")
    assert killed and killed.status == "running"
    seen = []

    def resumed(config: Config, stage: StageFolder) -> dict[str, object]:
        seen.append(stage.resuming and (stage.path / "checkpoint").exists())
        return {}

    run_stage(stage_writing("abc", build=resumed), make_config(tmp_path))
    assert seen == [True]


def test_only_an_unfinished_attempt_with_the_same_settings_is_resumed(tmp_path: Path) -> None:
    config, seen = make_config(tmp_path), []

    def build(config: Config, stage: StageFolder) -> dict[str, object]:
        seen.append((stage.resuming, [path.name for path in stage.path.iterdir()]))
        return write_text("abc")(config, stage)

    def stopped(config: Config, stage: StageFolder) -> dict[str, object]:
        (stage.path / "checkpoint").touch()
        raise UserError("no good", where="here", remedy="fix it")

    with pytest.raises(UserError):
        run_stage(stage_writing("xyz", build=stopped), config)
    run_stage(stage_writing("abc", build=build), config)  # other settings
    (tmp_path / "test/merge/model/weights.txt").unlink()
    run_stage(stage_writing("abc", build=build), config)  # complete, but for a lost file
    assert seen == [(False, ["manifest.json"])] * 2


def unit_stage(versions: dict[str, str], made: list[str]) -> Stage:
    def build(config: Config, stage: StageFolder) -> dict[str, object]:
        for name, version in versions.items():

            def make(folder: Path, name: str = name, version: str = version) -> dict[str, object]:
                made.append(name)
                if version == "broken":
                    raise UserError("broken", where=name, remedy="fix it")
                (folder / "sets" / name).parent.mkdir(parents=True)
                (folder / "sets" / name).write_text(version)
                return {"version": version}

            assert stage.unit(name, version, make) == {"version": version}
        return {}

    return Stage("data", 1, build, lambda config: versions, in_place=True)


def test_units_survive_a_failing_one_and_only_changed_ones_are_made_again(tmp_path: Path) -> None:
    config, made = make_config(tmp_path), list[str]()
    with pytest.raises(UserError):
        run_stage(unit_stage({"rcb": "1", "terra": "broken"}, made), config)
    run_stage(unit_stage({"rcb": "1", "terra": "1", "gazeta": "1"}, made), config)
    run_stage(unit_stage({"rcb": "1", "terra": "2"}, made), config)
    assert made == ["rcb", "terra", "terra", "gazeta", "terra"]
    for folder in ("sets", UNITS):
        assert {path.stem for path in (tmp_path / "test/data" / folder).iterdir()} == {"rcb", "terra"}
    assert not list((tmp_path / "test/data").rglob(f"*{PARTIAL}"))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("sets/one/rcb", Path.unlink),
        ("sets/one/rcb", lambda path: path.write_text("2")),  # of the same size
        (f"{UNITS}/one--rcb.json", lambda path: path.write_text("{")),
    ],
)
def test_a_unit_whose_file_or_record_was_lost_or_changed_is_made_again_and_no_other(
    file: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    made = list[str]()
    run_stage(unit_stage({"one/rcb": "1", "two/rcb": "1"}, made), make_config(tmp_path))
    damage(tmp_path / "test/data" / file)
    run_stage(unit_stage({"one/rcb": "1", "two/rcb": "1", "terra": "1"}, made), make_config(tmp_path))
    assert made == ["one/rcb", "two/rcb", "one/rcb", "terra"]


def test_units_stopped_between_their_files_leave_none_behind_in_another_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_files(config: Config, stage: StageFolder) -> dict[str, object]:
        return stage.unit("two", "1", lambda folder: {name: (folder / name).write_text(name) for name in ("a", "b")})

    def stopped(source: Path, target: Path, move: object = shutil.move) -> None:
        if source.name == "b":
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "move", stopped)
        run_stage(dataclasses.replace(unit_stage({}, []), build=two_files), make_config(tmp_path))
    assert (tmp_path / "test/data/a").exists() and read_manifest(tmp_path / "test/data").status == "failed"
    run_stage(unit_stage({"rcb": "1"}, []), make_config(tmp_path))
    assert not (tmp_path / "test/data/a").exists()


def test_a_rebuilt_unit_keeps_no_earlier_file_and_one_of_another_name_takes_over_its_file(tmp_path: Path) -> None:
    for unit, name in (("rcb", "before"), ("rcb", "after"), ("terra", "after")):

        def build(config: Config, stage: StageFolder, unit: str = unit, name: str = name) -> dict[str, object]:
            return stage.unit(unit, name, lambda folder: {"letters": (folder / name).write_text(name)})

        stage = Stage("data", 1, build, lambda config, names=[unit, name]: names, in_place=True)
        manifest = run_stage(stage, make_config(tmp_path))
        assert manifest.outputs.keys() == {name, f"{UNITS}/{unit}.json"}


def test_units_are_forgotten_only_once_the_artefact_counts_as_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, states = make_config(tmp_path), []
    run_stage(unit_stage({"rcb": "1"}, []), config)
    forget = StageFolder.forget_units

    def watched(stage: StageFolder) -> None:
        states.append(read_manifest(stage.path).status)
        forget(stage)

    monkeypatch.setattr(StageFolder, "forget_units", watched)
    run_stage(unit_stage({"rcb": "1"}, []), dataclasses.replace(config, force=True))
    assert states == ["running"]


def test_a_folder_that_is_replaced_is_never_seen_half_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, seen, unlink = tmp_path / "model", set(), os.unlink

    def watched(*arguments: object, **options: object) -> None:
        seen.add(tuple(sorted(path.name for path in target.glob("*"))))
        unlink(*arguments, **options)

    for names in (("a", "b", "c"), ("d", "e")):
        monkeypatch.setattr(os, "unlink", watched)
        with replacing(target) as folder:
            folder.mkdir()
            for name in names:
                (folder / name).touch()
    assert seen <= {(), ("a", "b", "c"), ("d", "e")}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_temporary_folders_left_by_a_kill_are_no_obstacle_and_ctrl_c_leaves_none(tmp_path: Path) -> None:
    for name in ("model", f"model{PARTIAL}", f"model.old{PARTIAL}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    for stopped in (nullcontext(), pytest.raises(KeyboardInterrupt)):
        with stopped, replacing(tmp_path / "model") as folder:
            folder.mkdir()
            if not isinstance(stopped, nullcontext):
                raise KeyboardInterrupt
        assert list(tmp_path.rglob("*")) == [tmp_path / "model"]


def test_a_model_s_config_comes_last_and_nothing_of_a_model_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, moved, replace = StageFolder("merge", tmp_path, "f", {}), list[str](), os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: moved.append(Path(new).name) or replace(old, new))
    for error in (KeyboardInterrupt, None):
        with pytest.raises(error) if error else nullcontext(), stage.scratch() as folder:
            for name in ("a", "config.json", "weights"):
                (folder / name).touch()
            if error:
                raise error
        assert moved == ([] if error else ["a", "weights", "config.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(moved)


def test_what_a_kill_left_next_to_or_deep_inside_an_artefact_is_removed(tmp_path: Path) -> None:
    config, folder = make_config(tmp_path), tmp_path / "test/merge"
    run_stage(stage_writing("abc"), config)
    shutil.copytree(folder, tmp_path / "test/merge.previous")
    run_stage(stage_writing("abc"), config)
    assert not (tmp_path / "test/merge.previous").exists()
    shutil.copytree(folder, tmp_path / "test/merge.previous")
    with pytest.raises(UserError):
        run_stage(stage_writing("xyz", build=failing), config)
    leftovers = [tmp_path / f"test/merge{PARTIAL}", tmp_path / f"test/merge.old{PARTIAL}", folder / f"a/b/c{PARTIAL}"]
    for leftover in leftovers:
        leftover.mkdir(parents=True)
    run_stage(stage_writing("xyz"), config)
    leftovers.append(tmp_path / "test/merge.previous")
    assert [leftover for leftover in leftovers if leftover.exists()] == []


@pytest.mark.parametrize("failure", [None, FileNotFoundError("vocabulary")])
@pytest.mark.parametrize("change", [{"status": "running"}, {"fingerprint": "of another state"}])
def test_an_input_that_is_rebuilt_while_it_is_read_is_named(
    tmp_path: Path, failure: Exception | None, change: dict[str, str]
) -> None:
    def build(config: Config, stage: StageFolder) -> dict[str, object]:
        manifest = read_manifest(stage.inputs["init"])
        dataclasses.replace(manifest, **change).write(stage.inputs["init"])
        if failure:
            raise failure
        return {}

    config = make_config(tmp_path)
    run_stage(dataclasses.replace(stage_writing("one"), name="init"), config)
    reader = stage_writing("abc", needs=lambda config: ["init"], build=build)
    now = change.get("status", "complete")
    with pytest.raises(UserError, match=f"init was rebuilt while merge read it, and is {now} now"):
        run_stage(reader, config)
    assert read_manifest(tmp_path / "test/merge").status == "failed"


def test_force_rebuilds_units_and_removes_those_that_are_no_longer_asked_for(tmp_path: Path) -> None:
    made = list[str]()
    run_stage(unit_stage({"rcb": "1", "terra": "1"}, made), make_config(tmp_path))
    run_stage(unit_stage({"rcb": "1"}, made), make_config(tmp_path, force=True))
    assert made == ["rcb", "terra", "rcb"]
    assert [path.name for path in (tmp_path / "test/data/sets").iterdir()] == ["rcb"]


def test_a_failed_forced_run_continues_without_force(tmp_path: Path) -> None:
    made = list[str]()
    run_stage(unit_stage({"rcb": "1", "terra": "1"}, made), make_config(tmp_path))
    with pytest.raises(UserError):
        run_stage(unit_stage({"rcb": "1", "gazeta": "broken", "terra": "1"}, made), make_config(tmp_path, force=True))
    run_stage(unit_stage({"rcb": "1", "terra": "1"}, made), make_config(tmp_path))
    assert made == ["rcb", "terra", "rcb", "gazeta", "terra"]


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(28, "No space left on device", "model"), "No space left on device (model)"),
        (OSError("IO error: Read-only file system (os error 30)"), "the disk is full or fails"),  # tokenizers
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/4"), "the disk is full or fails"),
        (
            RuntimeError("[enforce fail] . unexpected pos 8768 vs 8660"),
            "the disk is full or fails",
        ),
    ],
)
def test_a_read_only_or_full_disk_is_one_line(tmp_path: Path, error: Exception, what: str) -> None:
    def build(config: Config, stage: StageFolder) -> dict[str, object]:
        try:
            raise error
        except Exception as cause:  # libraries wrap the system's error
            raise ValueError("not written") from cause

    with pytest.raises(UserError, match="make room") as raised:
        run_stage(stage_writing("abc", build=build), make_config(tmp_path))
    assert raised.value.line.startswith(f"error: can't write: {what}")


def test_the_manifest_holds_the_resolved_config(tmp_path: Path) -> None:
    run_stage(stage_writing("abc"), make_config(tmp_path))
    written = json.loads((tmp_path / "test/merge/manifest.json").read_text())
    assert written["config"]["seed"] == 42 and "symmetric" in written["config"]["training"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_finished_stage_of_another_run_is_borrowed_when_asked(
    hard_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr("os.link", refused)
    first = run_stage(stage_writing("abc"), make_config(tmp_path, run="one"))
    with pytest.raises(UserError, match="no good"):
        run_stage(stage_writing("abc", build=failing), make_config(tmp_path, run="two"))
    borrowed = run_stage(stage_writing("abc", build=failing), make_config(tmp_path, run="two", borrow=True))
    assert borrowed == first == read_manifest(tmp_path / "two/merge")
    assert (tmp_path / "two/merge/model/weights.txt").read_text() == "abc"
    with pytest.raises(UserError, match="no good"):  # the first run's now has only its earlier self next to it
        run_stage(stage_writing("xyz", build=failing), make_config(tmp_path, run="one"))
    run_stage(stage_writing("abc", build=failing), make_config(tmp_path, run="three", borrow=True))
    assert read_manifest(tmp_path / "three/merge") == first


@pytest.mark.parametrize("state", ["damaged", "being rebuilt"])
def test_what_is_damaged_or_being_rebuilt_is_borrowed_from_a_run_that_has_it_whole(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("one", "two"):
        run_stage(stage_writing("abc"), make_config(tmp_path, run=run))
    weights = tmp_path / "one/merge/model/weights.txt"
    if state == "damaged":
        weights.write_text("abX")
    else:
        link = os.link
        monkeypatch.setattr("os.link", lambda *paths: (weights.unlink(missing_ok=True), link(*paths)))
    run_stage(stage_writing("abc", build=failing), make_config(tmp_path, run="x", borrow=True))
    assert (tmp_path / "x/merge/model/weights.txt").samefile(tmp_path / "two/merge/model/weights.txt")


def test_libraries_are_imported_without_searching_them_for_garbage_then_or_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "library.py").write_text("import gc\ncollected = gc.isenabled()\ndef build(): return collected\n")
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    frozen, cycle = gc.get_freeze_count(), Config()
    garbage = weakref.ref(cycle)
    cycle.profile = cycle  # type: ignore[assignment]
    del cycle
    assert not imported("library:build")() and gc.isenabled() and gc.get_freeze_count() > frozen
    assert garbage() is None  # else it would never be freed
    with pytest.raises(ImportError):
        imported("broken:build")
    assert gc.isenabled()
