"""A thin wrapper around Hydra: a typed config, and one line with exit status 2 for errors the user can fix."""

import dataclasses
import logging
import os
import re
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from configs.schema.config import STAGES, Config
from configs.schema.rules import problems
from pipeline.core.console import console, is_main_process, log
from pipeline.core.errors import Died, Stopped, UserError, disk_errors_explained, first_line
from pipeline.core.machine import ALLOCATOR

CONFIG_REMEDY = "compare with configs/ or the output of --cfg job"
QUOTED = r"""quote a value that is not a plain word: 'runs="new (1)"', and ARGS="'runs=\"new (1)\"'" for make"""
LAUNCHED = "PIPELINE_LAUNCHED"  # set for ranks whose stderr `pipeline.launch` reads
STOPS = {signal.SIGTERM, signal.SIGINT}
STOP_SECONDS = 30  # for a stopped rank that no longer trains
TARGETS = (*STAGES, "reproduce", "check", "lock", "plan")  # make targets that error messages may name
CONFIGS = Path(__file__).resolve().parent.parent / "configs"

ConfigStore.instance().store(name="schema", node=Config)
# A sweep's runs are named by their overrides; slashes, as in folders and Hub ids, can't be part of a name.
OmegaConf.register_new_resolver("swept", lambda: HydraConfig.get().job.override_dirname.replace("/", "_"))


def composed(*overrides: str) -> Config:
    """A command's config with these overrides, for use from Python; raises UserError for an impossible value."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return checked(hydra.compose("config", list(overrides)))


def checked(config: DictConfig) -> Config:
    """The composed config as dataclasses; raises UserError that names the full key of an impossible value."""
    known = {field.name for field in dataclasses.fields(Config)}
    for key in sorted(str(key) for key in config if key not in known | {"hydra"}):  # Hydra lets +key=value in
        raise UserError("there is no such setting", where=f"config key {key}", remedy="remove it from the command")
    typed = OmegaConf.to_object(config)
    assert isinstance(typed, Config)
    for key, problem in problems(typed):
        raise UserError(problem, where=f"config key {key}", remedy="change it in the config or on the command line")
    return typed


def hydra_application(job: Callable[[Config], Any]) -> Callable[[], None]:
    """The command-line entry point of `job`; exits with 0, 2 on a user error, or 128 + n on signal n."""
    return partial(_command, job)


def _command(job: Callable[[Config], Any]) -> None:
    errors, started = list[UserError](), list[DictConfig]()  # configs whose folders and logs Hydra has set up

    @_callback_errors_raised()
    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def run_job(config: DictConfig) -> str | None:
        started.append(config)
        try:
            with disk_errors_explained(Path(config.runs)):
                _require_profile_name(config)
                job(checked(config))
        except (Died, Exception) as error:
            if _received:  # a library, such as pydantic during its import, turned `Stopped` into another error
                raise Stopped(_received[0]) from error
            is_explained = isinstance(error, UserError | OmegaConfBaseException)
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # the line for `SweepTable`: the other jobs continue
                return _explained(error).line if is_explained else _crashed(error)
            if not is_explained:
                raise
            errors.append(_explained(error))  # not left to Hydra, which would print more lines
        return None

    _make_ready()
    try:
        _sort_options()
        run_job()
        sys.stdout.flush()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        errors.append(_explained(error))
    except (OSError, ValueError, TypeError, RecursionError, YAMLError) as error:
        if started:
            raise
        errors.append(_unreadable(error))
    except Stopped:
        if is_main_process() and LAUNCHED not in os.environ:  # else the launching command prints it
            print("stopped; run the same command to continue", file=sys.stderr, flush=True)
        raise
    if errors:
        lines = "\n".join(error.line for error in errors)
        _end_in_error(_for_this_run(lines, started[0]) if started else lines)


def _end_in_error(lines: str) -> NoReturn:
    """Print what the user can fix, after all other output, and exit with 2."""
    sys.stdout.flush()
    print(lines, file=sys.stderr, flush=True)
    sys.exit(2)


def _make_ready() -> None:
    """Set up the process: its libraries' output, its signal handlers, and the name of its log."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # config errors are raised unchanged
    if not console.is_terminal:
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; progress is logged as plain lines
    os.environ.setdefault(*ALLOCATOR)
    Hydra.get_mode = _mode_asked  # type: ignore[assignment]
    logging.raiseExceptions = False  # a log line that does not fit on the disk is lost without a traceback
    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGINT is in background jobs
            signal.signal(number, _stop)
    if LAUNCHED in os.environ:  # by a command that has already named the log after the stage
        asked, asking = os.pipe()
        os.set_blocking(asking, False)
        signal.set_wakeup_fd(asking)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not this process's
        threading.Thread(target=_end_in_time, args=[asked], daemon=True).start()
    else:
        specification = sys.modules["__main__"].__spec__
        os.environ["PIPELINE_JOB"] = specification.name.split(".")[-1] if specification else "run"
    if not is_main_process():
        sys.argv += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        log.setLevel(logging.ERROR)  # without a handler, Python itself would print warnings to stderr


def _mode_asked(_: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    """hydra.mode from the command line: Hydra would compose the whole config for it, a third of the start-up time."""
    given = [word.partition("=")[2].strip("'\"") for word in overrides if word.lstrip("+").startswith("hydra.mode=")]
    return RunMode.__members__.get(given[-1].upper()) if given else None


def _require_profile_name(config: DictConfig) -> None:
    """Raise UserError if the chosen profile is a copy that still has the name of another one."""
    chosen = HydraConfig.get().runtime.choices["profile"]
    if config.profile != chosen:
        what, remedy = f"the profile {chosen} calls itself {config.profile}", f"write profile: {chosen} into its file"
        raise UserError(what, where="config key profile", remedy=remedy)


def quoted(value: str) -> str:
    """A text in quotes for Hydra's override grammar."""
    return "'{}'".format(value.replace("'", r"\'"))


def passed_on() -> list[str]:
    """Arguments that compose this command's config in another: config name, overrides, and search paths."""
    hydra_config = HydraConfig.get()
    sources = hydra_config.runtime.config_sources
    places = [f"{of.schema}://{of.path}" for of in sources if of.provider == "hydra.searchpath in command-line"]
    options = [f"--config-dir={of.path}" for of in sources if of.provider == "command-line"]  # may hold the root file
    options.append(f"--config-name={hydra_config.job.config_name}")
    return [*options, *hydra_config.overrides.task, f"hydra.searchpath=[{','.join(map(quoted, places))}]"]


def _for_this_run(lines: str, config: DictConfig) -> str:
    """The lines, with PROFILE and RUN added to the make targets in them where they are not the defaults."""
    profile, run = config.profile, config.run
    name = run if re.fullmatch(r"[\w.+-]+", run, re.ASCII) else f"""'"{run}"'"""
    of = f" PROFILE={profile}" * (profile != "demo") + f" RUN={name}" * (run != profile)
    pattern = rf"\bmake ({'|'.join(TARGETS)})(?![\w=]| PROFILE=| RUN=)"
    return re.sub(pattern, lambda found: found[0] + of, lines)


def _crashed(error: BaseException) -> str:
    """The line for a crashed job in the table of a sweep."""
    if isinstance(error, Died):
        return error.line
    log.error("the job crashed", exc_info=error)
    hydra_config = HydraConfig.get()
    where = Path(hydra_config.runtime.output_dir) / f"{hydra_config.job.name}.log"
    what = f"{type(error).__name__}: {first_line(error)}"
    return UserError(what, where=str(where), remedy="see the traceback there").line


def _sort_options() -> None:
    """Put options before overrides: Hydra's parser takes overrides in one group only.

    Raises UserError for an unknown option, for which Hydra prints its whole usage.
    """

    def refuse(message: str) -> NoReturn:
        remedy = "settings are given as key=value; see --help and --hydra-help"
        raise UserError(message, where="command line", remedy=remedy)

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    overrides = parser.parse_intermixed_args().overrides
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in overrides] + overrides


_received = list[int]()  # numbers of the signals received


def _stop(number: int, _: object) -> None:
    _received.append(number)
    raise Stopped(number)


@contextmanager
def _callback_errors_raised() -> Iterator[None]:
    """Raise a callback's error, which Hydra turns into a warning: a sweep without its table would exit with 0."""
    warnings.filterwarnings("error", r"Callback \w+\.on_\w+ raised", UserWarning)
    try:
        yield
    except UserWarning as warned:
        with disk_errors_explained(Path.cwd()):
            raise warned.__context__ or warned from None


def _end_in_time(asked: int) -> None:
    """End this rank if a signal, readable from `asked`, does not, or if the command that launched it has gone.

    In the latter case its stderr is no longer read, and it is stopped as by SIGTERM. A signal alone can't end a rank
    that waits in a collective operation: Python handles signals between operations, and a stopped rank never joins.
    """
    reader = select.poll()
    reader.register(2, 0)  # for errors only, which are always reported
    reader.register(asked, select.POLLIN)
    while not (gone := any(descriptor == 2 for descriptor, _ in reader.poll())):
        if not STOPS.isdisjoint(os.read(asked, 512)):  # SIGCHLD, the end of a loader's worker, arrives here too
            break
    if gone:
        os.kill(os.getpid(), signal.SIGTERM)
    while True:
        time.sleep(STOP_SECONDS)
        if signal.getsignal(signal.SIGTERM) is _stop:  # else it saves a checkpoint
            os._exit(128 + signal.SIGTERM)


def _explained(error: BaseException) -> UserError:
    """Hydra's and OmegaConf's multi-line reports as one error; the innermost cause is the most specific."""
    if isinstance(error, UserError):
        return error
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
    key = next((line.partition(": ")[2] for line in lines if line.startswith("full_key: ")), None)
    first, second = lines[0].rstrip(".:"), lines[1] if lines[0].endswith(":") else str(error.__cause__ or "")
    if override := getattr(error, "override", None):
        return UserError(f"can't parse {override}: {first}", where="command line", remedy=QUOTED)
    if ambiguous := re.fullmatch(r"Ambiguous value for argument '(.*)'", first):
        remedy = f"{QUOTED}; put a list into [], or add --multirun for a sweep"
        return UserError(f"can't parse {ambiguous[1]}", where="command line", remedy=remedy)
    inner = second.splitlines()[0] if second else ""
    what = f"{first}: {inner}" if inner and inner not in first else first
    remedy = CONFIG_REMEDY
    if isinstance(error, MissingConfigException) and error.options:
        remedy = f"choose one of {', '.join(error.options)}"
    if "not a subclass of" in what:  # a limit of OmegaConf
        remedy = "add a new entry by a YAML file, like those in configs/; the command line only changes existing ones"
    return UserError(what, where=f"config key {key}" if key else "config", remedy=remedy)


def _unreadable(error: Exception) -> UserError:
    """Errors that Hydra passes on before the job starts: folders that can't be created, files that are not YAML."""
    if isinstance(error, BrokenPipeError):  # the reader of the output, such as `head`, has closed it
        console.on_broken_pipe()
    system = error if isinstance(error, OSError) else error.__cause__  # logging wraps a handler's error
    if isinstance(system, OSError):
        what, where = f"can't write the logs: {system.strerror}", str(system.filename)
        return UserError(what, where=where, remedy="set runs=<writable folder>")
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark else "config"
    what = getattr(error, "problem", None) or str(error)
    return UserError(what, where=where, remedy=CONFIG_REMEDY)
