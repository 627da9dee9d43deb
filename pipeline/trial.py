"""`make check TRIAL=1`: a few real training steps at the profile's shape on the available devices, before a long run.

A random model of the base's shape is trained on random words, in texts as long as the sources state: nothing is
downloaded, and no artefact is needed or changed. Ranks, precision, attention and batches are those of the run.
"""

import json
import os
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from configs.schema.config import SIDES, Config
from pipeline.application import hydra_application, passed_on, quoted
from pipeline.core.artefact import Manifest, read_manifest
from pipeline.core.console import quiet, show_table
from pipeline.core.device import autocast_dtype
from pipeline.core.errors import UserError
from pipeline.launch import run_command
from training.bases.synthetic import write_base, write_rows
from training.cost_model import Shape, measured_teraflops, shape_of_run, trained_parameters, training_flops
from training.workload import SetEstimate, assumed_rows, estimates

STEPS, LOGGED = 20, 5  # steps, and steps per line of the log, the first of which is warm-up


def trial(config: Config) -> None:
    """Run the steps of every side among the config's stages, and print what they predict for the whole run."""
    sides = [name for name in SIDES if name in config.stages]
    if not sides:
        raise UserError("no side is to be trained", where="config key stages", remedy="add symmetric")
    if config.launch.nodes > 1:
        raise UserError("a trial runs on one machine", where="config key launch.nodes", remedy="leave NODES out")
    shape = shape_of_run(config)
    sets = {name: estimates(config, name) for name in sides}
    Path(config.runs).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="trial-", dir=config.runs) as folder:
        place = Path(folder) / "trial"
        for stage in ("data", "init"):
            (place / stage).mkdir(parents=True)
            Manifest(stage, "complete", "of a trial", {}, {}).write(place / stage)
        with quiet():
            write_base(place / "init", shape, config.base)
        command = [sys.executable, "-m", "pipeline.run", *passed_on(), "tracking=none"]
        command += [f"runs={quoted(str(folder))}", "run=trial"]
        for name in sides:
            one = [*command, f"stages=[{name}]", *_prepared(config, name, sets[name], shape, place / "data")]
            run_command(one, dict(os.environ), name, place / "logs/run.log")
        peak = measured_teraflops(autocast_dtype(config.precision) or torch.float32)
        gpus = config.ranks(torch.cuda.device_count()) if torch.cuda.is_available() else 1  # ranks share a CPU
        found = [_found(config, name, sets[name], shape, place / name, peak * gpus) for name in sides]
    devices = f"{gpus} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "the CPU"
    title = f"{STEPS} steps on {devices}; matrix products on one reach {peak:.3g} TFLOP/s"
    show_table(title, ["", *sides], [[what, *(column[what] for column in found)] for what in found[0]])


def _prepared(config: Config, name: str, sets: list[SetEstimate], shape: Shape, data: Path) -> list[str]:
    """Write rows for the steps, in the proportions of the sets in the run; returns the side's overrides."""
    side = config.side(name)
    _, rows = assumed_rows(sets, side)
    chosen = np.random.default_rng(0).choice(len(sets), STEPS * side.batch_size, p=np.array(rows) / sum(rows))
    texts = [[length for role in sets[index].texts.values() for length in role] for index in chosen]
    longest = side.longest
    of = SIDES[name][0]
    write_rows(data / of / f"{name}.parquet", texts, longest, shape, labels=of == "symmetric" and side.angle_weight > 0)
    values = {"start": "init", "max_steps": STEPS, "logging_steps": LOGGED, "checkpoint_steps": 10 * STEPS}
    values |= {"dev_steps": "null", "average": "null", "anchor_length": longest, "positive_length": longest}
    values |= dict.fromkeys(side.auxiliary_models, "init")  # a step reads the vectors of any guide or teacher
    values["negatives"] = max(len(item.texts["negatives"]) for item in sets)
    own = [f"~training.{name}.sets.{key}" for key in side.sets]  # these sets don't exist here
    return [*own, *(f"training.{name}.{key}={value}" for key, value in values.items())]


def _found(config: Config, name: str, sets: list[SetEstimate], shape: Shape, made: Path, peak: float) -> dict[str, Any]:
    """What the steps predict for the whole run; `peak` is the rate of all devices together, in TFLOP/s."""
    side, manifest = config.side(name), read_manifest(made)
    assert manifest is not None
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rate = median(line["tokens_per_second"] for line in lines if line["step"] > LOGGED)
    steps, rows = assumed_rows(sets, side)
    tokens = sum(number * item.tokens for number, item in zip(rows, sets, strict=True))
    squares = sum(number * item.squares for number, item in zip(rows, sets, strict=True))
    adapter = trained_parameters(shape, side, f"training.{name}") if side.adapter.rank else None
    teraflops = training_flops(shape, 1, squares / tokens, 3, adapter) * rate / 1e12
    memory = manifest.peak_gpu_bytes or manifest.peak_rss_bytes
    return {
        "tokens per second": round(rate),
        "share of the peak": teraflops / peak,
        "peak memory of a device": f"{memory / 2**30:.1f} GiB",
        "steps of the run": steps,
        "tokens of the run": round(tokens),
        "hours of the run": f"{tokens / rate / 3600:.2g}",
    }


main = hydra_application(trial)

if __name__ == "__main__":
    main()
