"""The whole chain in one command: `python -m pipeline.run profile=demo`, with `--multirun` for sweeps."""

import dataclasses
import importlib

from pipeline.application import hydra_application
from pipeline.config import Config
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
        if module != "training.finetune":
            run_stage(choice, config)
            continue
        side = dataclasses.replace(config, side=name)
        stage, manifest = planned(choice, side)  # validated here, before any rank starts
        done = finished(stage.path(side), manifest.fingerprint)
        if done and not config.force:
            log.info("%s: up to date (%s)", name, manifest.fingerprint[:12])
        else:
            launch(module, [f"side={name}"], side)


main = hydra_application(run)

if __name__ == "__main__":
    main()
