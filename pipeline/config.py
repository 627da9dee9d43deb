"""The root config: one typed tree that every stage reads; the parts stand beside their stages."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from data.config import DataConfig
from evaluation.config import EvaluationConfig
from merging.config import MergingConfig
from pipeline.artefact import name_problem
from pipeline.errors import UserError
from training.config import BaseConfig, InitConfig, TrainingConfig

STAGES = ["data", "init", "symmetric", "asymmetric", "merge", "evaluate", "report"]
SIDES = ["symmetric", "asymmetric", "joint"]


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
    stages: list[str] = dataclasses.field(default_factory=lambda: list(STAGES))  # what pipeline.run runs
    side: str = "symmetric"  # what training.finetune trains
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
            if stage not in [*STAGES, "joint"]:
                yield "stages", f"{stage} is not one of {', '.join([*STAGES, 'joint'])}"
        if self.side not in SIDES:
            yield "side", f"must be one of {', '.join(SIDES)}"
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
        return [name for name in sides if getattr(self.training, name).batch_multiple % processes]

    def folder(self, stage: str) -> Path:
        """The artefact folder of a stage of this run."""
        return Path(self.runs) / self.run / stage

    @property
    def is_one_of_many(self) -> bool:
        """Whether other processes work on the same artefacts by intent: jobs of a sweep, machines of one launch."""
        return self.borrow or self.launch.nodes > 1

    @property
    def base_folder(self) -> Path:
        """The base model's folder, shared by the runs."""
        return Path(self.runs) / "bases" / self.base.name


def checked(config: DictConfig) -> Config:
    """The composed config as dataclasses; raises UserError with the full key of an impossible value."""
    known = {field.name for field in dataclasses.fields(Config)}
    for key in sorted(str(key) for key in config if key not in known | {"hydra"}):  # Hydra lets +key=value in
        raise UserError("there is no such setting", where=f"config key {key}", remedy="take it out of the command")
    typed = OmegaConf.to_object(config)
    assert isinstance(typed, Config)
    for key, problem in _problems(typed):
        raise UserError(problem, where=f"config key {key}", remedy="change it in the config or on the command line")
    return typed


def _problems(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if hasattr(value, "problems"):
        yield from ((f"{key}.{name}".lstrip("."), problem) for name, problem in value.problems())
    if isinstance(value, float) and not math.isfinite(value):
        yield key, f"must be a finite number, not {value}"
    elif isinstance(value, list):
        yield from (found for position, item in enumerate(value) for found in _problems(item, f"{key}.{position}"))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _problems(getattr(value, field.name), f"{key}.{field.name}".lstrip("."))
    elif isinstance(value, dict):
        for name, item in value.items():
            if dataclasses.is_dataclass(item) and (problem := name_problem(name)):  # sets, suites, corpora
                yield key, problem
            yield from _problems(item, f"{key}.{name}")
