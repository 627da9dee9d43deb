"""The root config: one typed tree that every stage reads; its parts are in the other modules of this package."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from configs.schema.data import DATA_SIDES, OWN_MODELS, DataConfig
from configs.schema.evaluation import EvaluationConfig, ExportConfig
from configs.schema.init import BaseConfig, InitConfig
from configs.schema.merging import MERGEKIT_METHODS, MergingConfig
from configs.schema.rules import setting
from configs.schema.training import HeadsConfig, SideConfig, TrainingConfig

# Training stage -> the sides of the data that it reads.
SIDES = {side: (side,) for side in DATA_SIDES} | {"joint": DATA_SIDES}
SIDES_READ = SIDES | {"heads": ("asymmetric",)}  # the same for all stages that train in planned batches
MADE = ("merge", "heads", "export", "evaluate", "report", "publish", "calibrate")  # from what the sides leave
STAGES = ("base", "benchmarks", "data", "init", *SIDES, *MADE)
# Made if a stage needs them, or on request.
ON_REQUEST = ("base", "benchmarks", "joint", "export", "publish", "calibrate")
LAUNCH_FILES = sorted(path.stem for path in (Path(__file__).parent.parent / "accelerate").glob("*.yaml"))


def remake(stages: Iterable[str], of: str = "") -> str:
    """The commands that make these stages and all after them again; `of` are variables for make."""
    return "".join(f"make {name}{of}, then " for name in stages if name in ON_REQUEST) + f"make reproduce{of}"


@dataclass
class LaunchConfig:
    """How `accelerate launch` starts training."""

    # A file of configs/accelerate, without .yaml; auto: by the devices; none: no launcher.
    config: str = setting("auto", choices=("auto", "none", *LAUNCH_FILES))
    processes: int | None = setting(None, least=1)  # ranks on all machines together; None: one per device
    # Machines; each runs the same command, with MASTER_ADDR and MASTER_PORT in its environment.
    nodes: int = setting(1, least=1)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.processes is not None and self.processes % self.nodes:
            yield "processes", f"must be a multiple of nodes ({self.nodes})"


@dataclass
class TrackingConfig:
    """Where configs, curves and metrics are sent in addition to the run's own files."""

    kind: str = setting("none", choices=("none", "wandb", "trackio"))  # the service
    project: str = "user-bge-m3"  # its project for all runs


@dataclass
class Config:
    """The whole configuration; `configs/config.yaml` fills it from its groups."""

    profile: str = MISSING  # the chosen profile
    run: str = setting(MISSING, name=True)  # name of the run's folder
    runs: str = "runs"  # folder of all runs
    seed: int = setting(42, least=0)  # the only source of randomness
    force: bool = False  # rebuild finished stages
    borrow: bool = False  # reuse finished stages of other runs with the same fingerprint (sweeps do)
    # Made in the chain's order.
    stages: list[str] = setting([name for name in STAGES if name not in ON_REQUEST], choices=STAGES)
    objective: str = "merge.dev"  # <stage>.<metric of its manifest> by which a sweep ranks its jobs, the highest first
    mirror: str | None = None  # a folder in the Hub's layout that replaces the Hub
    # Codes: their pieces are kept by init, and the model card names them.
    languages: list[str] = setting(["ru", "en"], distinct=True)
    # auto: bf16 if the device supports it natively, on other GPUs fp16 with a loss scaler, else fp32.
    precision: str = setting("auto", choices=("auto", "fp32", "bf16", "fp16"))
    # Padded tokens in an encoder's pass when texts are embedded; null: 512 on a CPU, 65,536 on a GPU.
    token_budget: int | None = setting(None, least=1, result=False)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    merging: MergingConfig = field(default_factory=MergingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        for suite in self.data.checked_suites:
            if suite not in (known := {"encodechka", *self.evaluation.suite}):
                yield "data.decontamination.suites", f"there is no suite {suite}; known: {', '.join(sorted(known))}"
        if self.data.mines and self.data.mining.model == "init" and self.init.counts_pairs:
            yield "data.mining.model", "can't be init, whose corpora count the pairs that mining completes; use base"
        if not self.languages and self.init.rule != "full":
            yield "languages", "must name at least one, whose pieces init keeps; init=full keeps all"
        if not self.runs or self.runs.startswith("~"):
            yield "runs", f"must be a folder, without ~, which is not expanded here: not '{self.runs}'"
        if self.mirror is not None and not Path(self.mirror).is_dir():
            yield "mirror", f"the folder {self.mirror} does not exist"
        if self.training.heads.kind == "joint" and self.merging.method in MERGEKIT_METHODS:
            method = self.merging.method
            yield "merging.method", f"can't be {method} with heads=joint: it yields no weights for merging the heads"
        if self.training.heads.kind != "none" and self.base.pooling == "lasttoken":
            why = "a decoder's tokens see only those before them"
            yield "training.heads.kind", f"must be none (heads=none) with base.pooling=lasttoken: {why}"
        for name in sorted({*self.merging.models} & {*STAGES} - {"base", "init", *SIDES}):
            yield "merging.models", f"can't name this run's {name}: it leaves no model, or is made from the merge"
        if "base" in self.merging.models and self.init.rule != "full" and {"init", *SIDES} & {*self.merging.models}:
            yield "merging.models", "can't name base next to models with init's smaller vocabulary; name init"
        if self.force and self.launch.nodes > 1 and (alone := [name for name in self.stages if name not in SIDES_READ]):
            why = f"{self.launch.nodes} machines would each rebuild {alone[0]} while the others read it"
            yield "force", f"{why}; force it on one first, with launch.nodes=1"
        for side in SIDES_READ:
            if self.trains(side) and (problem := self.uneven_shares(side, self.launch.processes or 1)):
                yield f"training.{side}.batch_multiple", problem
            if not isinstance(seconds := self.timeout(side), int | float) or seconds <= 0:
                yield f"training.{side}.arguments.ddp_timeout", f"must be a number of seconds, not {seconds}"

    def auxiliary_models(self, *stages: str, own: bool) -> dict[str, str]:
        """The models that mine, guide or teach in these stages, by config key: this run's `own`, or the others."""
        wanted = {"data.mining.model": self.data.mining.wanted} if "data" in stages and self.data.mines else {}
        for name in SIDES:
            of_side = self.side(name).auxiliary_models if name in stages else {}
            wanted |= {f"training.{name}.{role}": model for role, model in of_side.items()}
        return {key: model for key, model in wanted.items() if (model in OWN_MODELS) == own}

    def trains(self, stage: str) -> bool:
        """Whether the command trains this side, or fits heads to the merge."""
        return stage in self.stages and (stage != "heads" or self.training.heads.kind == "frozen")

    def uneven_shares(self, stage: str, processes: int) -> str | None:
        """Why a stage's smallest batch can't be split evenly over these processes; None if it can."""
        multiple = self.training_of(stage).batch_multiple
        return f"must be a multiple of the {processes} processes, not {multiple}" if multiple % processes else None

    def side(self, name: str) -> SideConfig:
        """The settings of one side's training."""
        return getattr(self.training, name)

    def training_of(self, name: str) -> SideConfig | HeadsConfig:
        """The training settings of a side or of the heads."""
        return self.training.heads if name == "heads" else self.side(name)

    def ranks(self, devices: int) -> int:
        """The number of training processes on all machines, given the number of GPUs of each."""
        return self.launch.processes or max(devices, 1) * self.launch.nodes

    @property
    def training_seed(self) -> int:
        """The seed of all training stages."""
        return self.seed if self.training.seed is None else self.training.seed

    def timeout(self, stage: str) -> float:
        """Seconds that one collective operation of a stage's ranks may take; the default is the library's."""
        return {"ddp_timeout": 1800, **self.training.arguments, **self.training_of(stage).arguments}["ddp_timeout"]

    @property
    def run_folder(self) -> Path:
        """The folder that holds this run's artefacts."""
        return Path(self.runs) / self.run

    def folder(self, stage: str) -> Path:
        """The artefact folder of a stage: in this run or, for the base, shared by all runs."""
        return Path(self.runs) / "bases" / self.base.name if stage == "base" else self.run_folder / stage

    def model_folder(self, stage: str) -> Path:
        """The sentence-transformers folder that a stage writes."""
        return self.folder(stage) if stage in ("base", "init") else self.folder(stage) / "model"

    @property
    def is_one_of_many(self) -> bool:
        """Whether other processes deliberately work on the same artefacts: sweep jobs, or machines of one launch."""
        return self.borrow or self.launch.nodes > 1
