"""Signals, logs and full disks around a command: one line each, and the right exit status."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pipeline.application import CONFIGS, LAUNCHED, QUOTED, _explained, hydra_application, passed_on, quoted
from pipeline.core.console import log
from pipeline.core.errors import UserError
from tests.support.runs import Ended, run_main, start


def start_application(job: str, runs: Path, *overrides: str) -> subprocess.Popen[str]:
    """A command that evaluates `job`, a Python expression."""
    code = (
        "import logging, multiprocessing, os, signal, sys, time; from pipeline.application import hydra_application\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background\n"
        f"hydra_application(lambda config: {job})()"
    )
    return start("profile=tiny", f"runs={runs}", *overrides, code=code)


@pytest.fixture
def run_application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """A command that calls a function, in this process: for what neither signals nor closed pipes end."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # else the log would be named after pytest
    return lambda job, *overrides: run_main(*overrides, f"runs={tmp_path}", main=hydra_application(job))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_with_one_line_and_its_status(number: signal.Signals, tmp_path: Path) -> None:
    process = start_application(f"(os.kill(os.getpid(), {number:d}), time.sleep(60))", tmp_path)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "stopped; run the same command to continue\n")


def test_a_signal_that_a_library_turned_into_another_error_still_ends_a_command(tmp_path: Path) -> None:
    made_another = "exec('try: os.kill(os.getpid(), 15), time.sleep(60)\\nexcept BaseException: raise ValueError')"
    process = start_application(made_another, tmp_path)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "stopped; run the same command to continue\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_that_waits_for_its_training(number: signal.Signals, tmp_path: Path) -> None:
    silent = "__import__('pipeline.launch').launch.relay(open(os.pipe()[0], 'rb'))"
    job = f"(print(__import__('polars').__name__, flush=True), {silent})"  # polars handles SIGINT in its own way
    process = start_application(job, tmp_path)
    assert process.stdout and process.stdout.readline() == "polars\n"
    time.sleep(0.5)  # until it waits
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number


def test_a_rank_whose_launching_command_is_gone_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, LAUNCHED, "1")
    process = start_application("(print('begun', flush=True), time.sleep(60))", tmp_path)
    assert process.stdout and process.stderr and process.stdout.readline() == "begun\n"
    process.stderr.close()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM


IMPATIENT = "setattr(sys.modules['pipeline.application'], 'STOP_SECONDS', 0.5)"


def test_a_stopped_rank_ends_though_it_waits_for_one_that_never_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, LAUNCHED, "1")
    store = "__import__('torch').distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)"
    waits = f"(store := {store}), print('begun', flush=True), store.get('never')"  # in C++, as in an operation of all
    process = start_application(f"({IMPATIENT}, {waits})", tmp_path)
    assert process.stdout and process.stdout.readline() == "begun\n"
    time.sleep(0.5)  # until it waits: before, Python's own handler would end it
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_a_rank_continues_after_its_own_worker_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, LAUNCHED, "1")
    worker = "(worker := multiprocessing.get_context('fork').Process(target=time.sleep, args=[60]))"
    handler = "signal.signal(signal.SIGCHLD, lambda *_: None)"  # of its end, as torch's loaders have one
    stopped = "worker.start(), time.sleep(0.2), worker.terminate(), worker.join(), time.sleep(2)"
    process = start_application(f"({IMPATIENT}, {handler}, {worker}, {stopped}, print(worker.exitcode))", tmp_path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out.strip()


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["profile=tiny"], "make it first: make data PROFILE=tiny, or everything: make reproduce PROFILE=tiny"),
        (["profile=tiny", "merging.models=[joint,init]", "stages=[merge]"], "make it first: make joint PROFILE=tiny\n"),
        (
            ["profile=tiny", "run=second"],
            "make data PROFILE=tiny RUN=second, or everything: make reproduce PROFILE=tiny RUN=second",
        ),
        (["profile=demo"], "make it first: make data, or everything: make reproduce\n"),
    ],
)
def test_the_make_targets_that_an_error_names_make_this_run(overrides: list[str], advice: str, tmp_path: Path) -> None:
    ended = run_main("stages=[symmetric]", *overrides, f"runs={tmp_path}", "launch.config=none")
    assert ended.status == 2 and advice in ended.err


def test_a_full_disk_outside_of_any_stage_is_one_line(run_application: Callable[..., Ended]) -> None:
    ended = run_application(lambda config: Path("/dev/full").write_text("x"), "profile=tiny")
    assert ended.status == 2
    assert ended.err.startswith("error: can't write: No space left on device") and ended.err.count("\n") == 1


def test_a_log_that_can_t_be_opened_is_named(run_application: Callable[..., Ended], tmp_path: Path) -> None:
    log = tmp_path / "tiny/logs/run.log"
    log.mkdir(parents=True)
    err = run_application(print, "profile=tiny").err
    assert err == f"error: can't write the logs: Is a directory ({log}); set runs=<writable folder>\n"


def test_the_log_is_rotated(run_application: Callable[..., Ended], tmp_path: Path) -> None:
    lines, bound = (lambda config: [log.info("line %d", number) for number in range(100)]), "maxBytes=300"
    ended = run_application(lines, "profile=tiny", f"hydra.job_logging.handlers.file.{bound}")
    logs = sorted((tmp_path / "tiny/logs").iterdir())
    assert [path.name for path in logs] == ["run.log", "run.log.1", "run.log.2", "run.log.3"], ended
    assert all(path.stat().st_size <= 300 for path in logs)


@pytest.mark.parametrize("text", ["it's", "ru+en, (2)", "опыт=1"])
def test_a_quoted_text_is_what_hydra_reads(text: str) -> None:
    [override] = OverridesParser.create().parse_overrides([f"run={quoted(text)}"])
    assert override.value() == text


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_cfg_job_prints_the_resolved_config(order: slice) -> None:
    parts = [["--cfg", "job"], ["profile=demo", "seed=7"]][order]
    done = run_main(*parts[0], *parts[1])
    assert done.status == 0 and "seed: 7" in done.out and "profile: demo" in done.out


@pytest.mark.parametrize("asked", ["--cfg=job", "--cfg=hydra"])  # the second is short enough to wait in the buffer
def test_a_reader_that_has_seen_enough_is_not_an_error(asked: str) -> None:
    process = start(asked, "profile=tiny")
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize("override", ["run=опыт", "mirror=a=b", "mirror=books (1)", "seed=[1", "ключ=1"])
def test_an_override_that_can_t_be_parsed_is_named_with_the_way_to_quote_it(override: str) -> None:
    with pytest.raises(HydraException) as raised:
        OverridesParser.create().parse_overrides([override])
    line = _explained(raised.value).line
    assert line.startswith(f"error: can't parse {override}: ") and line.endswith(f" (command line); {QUOTED}")


def test_the_way_to_quote_gives_the_value_to_a_command_and_through_make() -> None:
    direct, through_make = re.fullmatch(r".*: ('.*'), and (ARGS=\".*\") for make", QUOTED).groups()  # type: ignore[union-attr]
    [variable] = shlex.split(through_make)  # as the shell passes it to make, which puts it into another shell's line
    for given in shlex.split(direct), shlex.split(variable.removeprefix("ARGS=")):
        [override] = OverridesParser.create().parse_overrides(given)
        assert (override.key_or_group, override.value()) == ("runs", "new (1)")


def test_an_override_in_quotes_arrives_as_it_was_typed(tmp_path: Path) -> None:
    folder, main = tmp_path / "мои прогоны = новые", hydra_application(lambda config: print(config.runs))
    assert run_main("profile=tiny", f'runs="{folder}"', main=main) == Ended(0, f"{folder}\n", "")
    ended = run_main("profile=tiny", f"runs={folder}", main=main)
    assert ended.err.startswith(f"error: can't parse runs={folder}: ") and ended.err.endswith(f"; {QUOTED}\n")
    assert (ended.err.count("\n"), ended.status) == (1, 2)


def test_the_runs_of_a_sweep_over_folders_and_hub_ids_have_names_without_slashes(
    run_application: Callable[..., Ended],
) -> None:
    chosen = ["profile=tiny", "sweep=learning_rate", "seed=7", "training.symmetric.guide=some/model,/a/b"]
    out = run_application(lambda config: print(config.run), "--multirun", *chosen).out
    assert "tiny-seed=7,training.symmetric.guide=some_model,training.symmetric.learning_rate=" in out
    assert "tiny-seed=7,training.symmetric.guide=_a_b,training.symmetric.learning_rate=" in out


@pytest.mark.parametrize(
    ("options", "times"),  # Hydra's own sweeper composes each job's config twice
    [((), 1), (("run=a,b", "--multirun"), 5), (("run=a,b", "hydra.mode=MULTIRUN"), 5), (("hydra.mode=RUN",), 1)],
)
def test_a_command_composes_its_config_once(
    options: tuple[str, ...],
    times: int,
    run_application: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = Mock(side_effect=ConfigLoaderImpl.load_configuration, autospec=True)
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", lambda *of, **how: load(*of, **how))
    ended = run_application(lambda config: print(config.seed), "profile=tiny", *options)
    assert (ended.status, load.call_count) == (0, times), ended


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (OSError(28, "No space left on device"), "error: can't write: No space left on device ("),
        (UserError("no arm", where="x", remedy="y"), "error: no arm (x); y\n"),
    ],
)
def test_a_sweep_whose_table_can_t_be_written_does_not_end_well(
    raised: Exception, line: str, run_application: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sweep.show_table", Mock(side_effect=raised))
    ended = run_application(print, "--multirun", "profile=tiny", "run=a,b")
    assert (ended.status, ended.err.count("\n")) == (2, 1) and ended.err.startswith(line)


def test_what_a_command_passes_on_composes_its_config_also_from_files_elsewhere(
    run_application: Callable[..., Ended], tmp_path: Path
) -> None:
    for name, content in {"one dir/profile/mine": "profile: mine", "two/arm/mine": "seed: 7"}.items():
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(f"# @package _global_\n{content}\n")
    (tmp_path / "one dir" / "own.yaml").write_text("defaults: [config, _self_]\nlanguages: [kk]\n")
    chosen = ["arm=mine", f"hydra.searchpath=['file://{tmp_path}/two']"]
    options = [f"--config-dir={tmp_path}/one dir", "--config-name=own"]  # between overrides
    first = run_application(lambda config: print(*passed_on(), sep="\n"), "profile=mine", *options, *chosen)
    ended = run_main("--cfg=job", *first.out.splitlines())
    expected = ("profile: mine", "seed: 7", "- kk")
    assert ended.status == 0 and all(each in ended.out for each in expected), first.err + ended.err


def test_a_copied_profile_that_keeps_the_old_name_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "profile" / "copied.yaml"
    copy.parent.mkdir()
    copy.write_bytes((CONFIGS / "profile" / "tiny.yaml").read_bytes())
    ended = run_main("profile=copied", f"hydra.searchpath=['file://{tmp_path}']", f"runs={tmp_path}", "stages=[report]")
    assert (ended.status, ended.out) == (2, "")
    assert "error: the profile copied calls itself tiny (config key profile); write profile: copied into" in ended.err
