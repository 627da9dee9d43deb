"""The stage that trains one side from the init model: `python -m training.finetune side=symmetric`.

Under `accelerate launch` each process takes its slice of every planned global batch; the result is the same.
"""

from typing import Any

from pipeline.config import Config
from pipeline.stage import Stage, StageFolder, application

SIDES_OF = {"symmetric": ["symmetric"], "asymmetric": ["asymmetric"], "joint": ["symmetric", "asymmetric"]}


def stage_for(config: Config) -> Stage:
    """The stage of the side that the config names."""
    return Stage(
        name=config.side,
        version=2,
        settings=lambda config: {
            "side": getattr(config.training, config.side),
            "arguments": config.training.arguments,
            "precision": config.precision,
            "attention": config.base.attention,
        },
        inputs=lambda config: {"data": config.folder("data"), "init": config.folder("init")},
        build=build,
    )


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Train; writes model/, plan.json and metrics.jsonl, and keeps checkpoints/ until then."""
    from training.run import train_side

    return train_side(config, stage)


STAGE = stage_for
main = application(STAGE)

if __name__ == "__main__":
    main()
