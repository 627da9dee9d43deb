"""The whole chain in one command: `python -m pipeline.run profile=demo`, with `--multirun` for sweeps.

Also what `accelerate launch` starts: `accelerate launch … -m pipeline.run profile=bge_m3 stages=[symmetric]`.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from importlib.util import find_spec

from configs.schema.config import SIDES, SIDES_READ, Config
from configs.schema.merging import MERGEKIT_METHODS
from pipeline.application import LAUNCHED, hydra_application
from pipeline.chain import CHAIN
from pipeline.core.artefact import is_complete
from pipeline.core.console import log
from pipeline.core.errors import INSTALL, UserError
from pipeline.core.machine import leave_ranks
from pipeline.core.model_folder import encoder_config, require_width
from pipeline.launch import launch, rendezvous
from pipeline.stage import (
    Stage,
    folder_and_manifest,
    input_fingerprint,
    is_up_to_date,
    locked,
    prepare_ranks,
    read_finished,
    run_stage,
)
from pipeline.sweep import sweep_lock
from training.vocabulary.corpora import counted_files
from training.vocabulary.selection import scripts_of


def run(config: Config) -> None:
    """Run the configured stages; finished ones are skipped."""
    for name in config.stages:
        CHAIN[name].settings(config)  # refuses impossible settings before anything is made
    require_sets(config)
    require_packages(config)
    asked = in_order(config)
    if is_launched():
        return _run_as_rank(asked, config)
    if config.launch.nodes > 1 and config.launch.config != "none" and any(CHAIN[name].on_ranks for name in asked):
        rendezvous(config.launch.nodes)  # fails now rather than after hours of data preparation
    require_inputs(asked, config)
    with ExitStack() as held:
        if not config.is_one_of_many:  # else a second command might start a stage before this one reaches it
            for name in asked:
                held.enter_context(locked(config.folder(name), purpose=".command"))
        if "init" in asked:
            make_implied("init", config)  # a base that can't be used ends the run before data is made
            require_dimensions(config)
        for name in asked:
            make(name, config)


def require_sets(config: Config) -> None:
    """Raise UserError for a set that a requested stage needs, by name or by side, and that data will not provide.

    Also for a language whose script is unknown to init, which runs after data, and for a missing file of its corpora.
    """
    if "init" in config.stages and config.init.rule != "full":
        scripts_of(config.languages, config.init.scripts)
        counted_files(config)
    evaluation, named = config.evaluation, dict[str, Iterable[str]]()
    if "merge" in config.stages:
        named["merging.guard_sources"] = config.merging.guard_sources
    if "evaluate" in config.stages:
        named |= {f"evaluation.suite.{name}.sets": evaluation.suite[name].sets.values() for name in evaluation.suites}
    for key, sets in named.items():
        if unknown := [name for name in sets if name not in config.data.held_out]:
            there = ", ".join(config.data.held_out) or "it has none"
            part, place = ("it", key) if key == "merging.guard_sources" else ("the suite", "evaluation.suites")
            remedy = f"name sets of data.held_out ({there}), or leave {part} out of {place}"
            raise UserError(f"set {unknown[0]} is not held out", where=f"config key {key}", remedy=remedy)
    for name in filter(config.trains, SIDES_READ):
        sets = [key for key, source in config.data.sources.items() if source.side in SIDES_READ[name]]
        own, where = config.training_of(name).sets, f"config key training.{name}.sets"
        if not sets:
            what, remedy = f"there are no pairs to train the stage {name} on", "add sources for this side"
            trains_alone = name == "symmetric" and config.data.sources
            remedy += ", or train the other side alone: arm=asymmetric" if trains_alone else ""
            raise UserError(what, where="config key data.sources", remedy=remedy)
        if unknown := [key for key in own if key not in sets]:
            what, remedy = f"no set of this side is called {unknown[0]}", f"choose among {', '.join(sorted(sets))}"
            raise UserError(what, where=f"{where}.{unknown[0]}", remedy=remedy)
        if all(key in own and not own[key].weight for key in sets):
            remedy = f"give one a weight above 0, or leave {name} out of stages"
            raise UserError("every set of this side has weight 0", where=where, remedy=remedy)


def require_packages(config: Config) -> None:
    """Raise UserError for an optional package that a stage to be made needs, before the stages before it are made."""
    made = [name for name in config.stages if config.force or not is_complete(config.folder(name))]
    adapted = [name for name in SIDES if name in made and config.side(name).adapter.rank is not None]
    wanted = {f"training.{name}.adapter.rank": "peft" for name in adapted}
    methods = [config.merging.method, *config.merging.compare] if "merge" in made else []
    wanted |= {f"merging, {name}": "mergekit" for name in methods if name in MERGEKIT_METHODS}
    for key, package in wanted.items():
        if find_spec(package) is None:
            what, remedy = f"the package {package} is not installed", f"{INSTALL} {package}"
            raise UserError(what, where=f"config key {key}", remedy=remedy)


def require_inputs(asked: Collection[str], config: Config) -> None:
    """Raise UserError where a requested stage needs one that is neither requested nor complete, before any is made."""
    for name in asked:
        for needed in CHAIN[name].needs(config):
            if needed not in asked and not CHAIN[needed].implied:
                input_fingerprint(CHAIN[name], needed, config.folder(needed))


def require_dimensions(config: Config) -> None:
    """Raise UserError if a requested stage cuts vectors at more dimensions than those of the base, which is made."""
    width, evaluation = encoder_config(config.folder("base"))["hidden_size"], config.evaluation
    wanted = {f"training.{name}": config.side(name).dimensions for name in SIDES if name in config.stages}
    for name in evaluation.suites if "evaluate" in config.stages else ():
        if evaluation.suite[name].kind == "vectors":
            wanted[f"evaluation.suite.{name}"] = evaluation.suite[name].dimensions
    for key, dimensions in wanted.items():
        require_width(dimensions, width, key)


def in_order(config: Config) -> list[str]:
    """The requested stages in the chain's order, each after those it needs: init precedes data if it mines."""
    order: dict[str, None] = {}

    def place(name: str) -> None:
        for needed in CHAIN[name].needs(config):
            if needed in config.stages:
                place(needed)
        order[name] = None

    for name in (name for name in CHAIN if name in config.stages):  # evaluate and report use what is complete by then
        if name == "heads" and config.training.heads.kind != "frozen":
            log.info("heads are not fitted to the merged model: heads=%s", config.training.heads.kind)
        else:
            place(name)
    return list(order)


def make(name: str, config: Config) -> None:
    """Make a stage unless it is finished, after the implied stages that it needs; `force` rebuilds only itself."""
    make_implied(name, config)
    _run_or_launch(CHAIN[name], config)


def make_implied(name: str, config: Config) -> None:
    """Make the implied stages that a stage needs, unless they are finished."""
    patient = dataclasses.replace(config, force=False)
    for needed in (CHAIN[other] for other in CHAIN[name].needs(config) if CHAIN[other].implied):
        folder, _ = folder_and_manifest(needed, patient)
        if not read_finished(folder.path, folder.fingerprint):  # without the lock, as several runs share a base
            log.info("%s needs %s first", name, needed.name)
            _run_or_launch(needed, patient)


def _run_or_launch(stage: Stage, config: Config) -> None:
    with sweep_lock(stage, config):
        if not stage.on_ranks or config.launch.config == "none":
            run_stage(stage, config)
        elif not is_up_to_date(stage, config):  # validated here, before any rank starts
            prepare_ranks(stage, config)
            launch(stage.name, config)


def is_launched() -> bool:
    """Whether this process is one that `accelerate launch` (or torchrun) started."""
    return bool({LAUNCHED, "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys())


def _run_as_rank(asked: list[str], config: Config) -> None:
    """Run training stages on this rank; raises UserError for others, which every process would make separately."""
    for name in asked:
        if not CHAIN[name].on_ranks:
            remedy = f"make it without the launcher (make {name}), then launch stages=[symmetric]"
            raise UserError(f"accelerate launch can't make {name}", where="config key stages", remedy=remedy)
    for name in asked:
        run_stage(CHAIN[name], config)
    leave_ranks()


main = hydra_application(run)

if __name__ == "__main__":
    main()
