"""The whole chain in one command: `python -m pipeline.run profile=demo`, with `--multirun` for sweeps."""

import dataclasses
import importlib
from contextlib import ExitStack

from pipeline.application import hydra_application
from pipeline.config import SIDES, Config
from pipeline.launch import launch
from pipeline.stage import is_up_to_date, locked, run_stage
from pipeline.sweep import turn

MODULES = {
    "data": "data.prepare",
    "init": "training.initialize",
    "symmetric": "training.finetune",
    "asymmetric": "training.finetune",
    "joint": "training.finetune",
    "merge": "merging.merge",
    "evaluate": "evaluation.evaluate",
    "report": "evaluation.report",
}


def run(config: Config) -> None:
    """Run the configured stages in order; what is done already is not made again."""
    with ExitStack() as held:
        if not config.is_one_of_many:  # else a second command might begin a stage before the first one gets there
            for name in dict.fromkeys(config.stages):
                held.enter_context(locked(config.folder(name), purpose=".command"))
        _run_stages(config)


def _run_stages(config: Config) -> None:
    for name in config.stages:
        module = MODULES[name]
        choice = importlib.import_module(module).STAGE
        sided = dataclasses.replace(config, side=name) if name in SIDES else config
        with turn(choice, sided):
            if name not in SIDES or config.launch.config == "none":
                run_stage(choice, sided)
            elif not is_up_to_date(choice, sided):  # validated here, before any rank starts
                launch(module, [f"side={name}"], sided)


main = hydra_application(run)

if __name__ == "__main__":
    main()
