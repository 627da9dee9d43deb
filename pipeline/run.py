"""The whole chain in one command: `python -m pipeline.run profile=demo`, with `--multirun` for sweeps."""

import dataclasses
import importlib

from pipeline.application import hydra_application
from pipeline.config import SIDES, Config
from pipeline.console import log
from pipeline.launch import launch
from pipeline.stage import finished, planned, run_stage

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
    for name in config.stages:
        module = MODULES[name]
        choice = importlib.import_module(module).STAGE
        sided = dataclasses.replace(config, side=name) if name in SIDES else config
        if name not in SIDES or config.launch.config == "none":
            run_stage(choice, sided)
            continue
        stage, manifest = planned(choice, sided)  # validated here, before any rank starts
        if finished(stage.path(sided), manifest.fingerprint) and not config.force:
            log.info("%s: up to date (%s)", name, manifest.fingerprint[:12])
        else:
            launch(module, [f"side={name}"], sided)


main = hydra_application(run)

if __name__ == "__main__":
    main()
