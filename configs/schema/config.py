"""The root config: one typed tree that every stage reads; the parts stand beside their stages."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from omegaconf import MISSING

from configs.schema.data import DataConfig
from configs.schema.evaluation import EvaluationConfig
from configs.schema.init import BaseConfig, InitConfig
from configs.schema.merging import MergingConfig
from configs.schema.rules import name_problem
from configs.schema.training import SideConfig, TrainingConfig

SIDES = {  # what can be trained -> the sides of the data that it reads
    "symmetric": ("symmetric",),
    "asymmetric": ("asymmetric",),
    "joint": ("symmetric", "asymmetric"),
}
STAGES = ("base", "benchmarks", "data", "init", *SIDES, "merge", "evaluate", "report", "publish", "calibrate")
ON_REQUEST = ("base", "benchmarks", "joint", "publish", "calibrate")  # made where a stage needs them, or asked for


@dataclasses.dataclass
class LaunchConfig:
    """How `accelerate launch` starts training."""

    config: str = "auto"  # a file of configs/accelerate, without its ending; auto: by the devices; none: no launcher
    processes: int | None = None  # ranks in all, on all machines; None: one a device
    nodes: int = 1  # machines; each runs the same command, with MASTER_ADDR and MASTER_PORT in its environment

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.processes is not None and self.processes < 1:
            yield "processes", "must be at least 1"
        if self.nodes < 1:
            yield "nodes", "must be at least 1"
        elif self.processes is not None and self.processes % self.nodes:
            yield "processes", f"must be a multiple of nodes ({self.nodes})"


@dataclasses.dataclass
class TrackingConfig:
    """Where configs, curves and metrics go beside the run's own files."""

    kind: str = "none"  # none, wandb or trackio
    project: str = "user-bge-m3"

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind not in ("none", "wandb", "trackio"):
            yield "kind", "must be none, wandb or trackio"


@dataclasses.dataclass
class Config:
    """The whole configuration; `configs/config.yaml` fills it from its groups."""

    profile: str = MISSING  # which profile was chosen
    run: str = MISSING  # name of the run's folder
    runs: str = "runs"  # folder of all runs
    seed: int = 42  # the only source of randomness
    force: bool = False  # make again what is there
    borrow: bool = False  # take over finished stages of the other runs where the fingerprint is the same (sweeps do)
    stages: list[str] = dataclasses.field(  # what is made, in this order
        default_factory=lambda: [name for name in STAGES if name not in ON_REQUEST]
    )
    objective: str = "merge.dev"  # <stage>.<metric of its manifest> by which a sweep orders its jobs
    mirror: str | None = None  # a folder in the Hub's layout, read instead of the Hub
    languages: list[str] = dataclasses.field(default_factory=lambda: ["ru", "en"])
    precision: str = "auto"  # auto (bf16 where the device has it natively), fp32, bf16
    launch: LaunchConfig = dataclasses.field(default_factory=LaunchConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    base: BaseConfig = dataclasses.field(default_factory=BaseConfig)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    merging: MergingConfig = dataclasses.field(default_factory=MergingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        for stage in self.stages:
            if stage not in STAGES:
                yield "stages", f"{stage} is not one of {', '.join(STAGES)}"
        for suite in self.data.checked_suites:
            if suite not in (known := {"encodechka", *self.evaluation.suite}):
                yield "data.decontamination.suites", f"there is no suite {suite}; known: {', '.join(sorted(known))}"
        if self.precision not in ("auto", "fp32", "bf16"):
            yield "precision", "must be auto, fp32 or bf16"
        if self.mirror is not None and not Path(self.mirror).is_dir():
            yield "mirror", f"the folder {self.mirror} does not exist"
        processes = self.launch.processes or 1
        for side in self.sides_not_for(processes):
            yield f"training.{side}.batch_multiple", f"must be a multiple of the {processes} processes"
        for key, name in (("run", self.run), ("base.name", self.base.name)):
            if problem := name_problem(name):
                yield key, problem

    def sides_not_for(self, processes: int) -> list[str]:
        """The sides to be trained whose smallest batch so many processes can't share out evenly."""
        sides = [name for name in SIDES if name in self.stages]
        return [name for name in sides if self.side(name).batch_multiple % processes]

    def side(self, name: str) -> SideConfig:
        """The settings of one side's training."""
        side = getattr(self.training, name)
        assert isinstance(side, SideConfig)
        return side

    def folder(self, stage: str) -> Path:
        """The artefact folder of a stage: of this run, or of the base, which the runs share."""
        return Path(self.runs) / "bases" / self.base.name if stage == "base" else Path(self.runs) / self.run / stage

    @property
    def is_one_of_many(self) -> bool:
        """Whether other processes work on the same artefacts by intent: jobs of a sweep, machines of one launch."""
        return self.borrow or self.launch.nodes > 1
