"""Code that fresh processes run: a prepared side, which tests can kill, and the ranks of the gradient test.

`-m tests.support.training_process` trains the side.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from configs.schema.training import DIRECTIONS, SideConfig
from pipeline.application import CONFIGS
from pipeline.chain import CHAIN
from pipeline.stage import run_stage
from tests.support.planned_sets import (
    features_of,
    gradients,
    planned_loss,
    prepared_run,
    random_vectors,
    rows,
    tiny_model,
    tokenised,
)
from tests.support.small_bases import tiny_base
from training import sets
from training.batch_plan import GlobalBatch, plan_batches
from training.heads.loss import HeadsLoss, JointLoss, add_heads
from training.sets import TokenisedSet

CPU = CONFIGS / "accelerate" / "cpu.yaml"
ONE_BATCH = SideConfig(batch_size=16, batch_multiple=8, bucket_batches=4, max_steps=1)
ALL_IN_ONE, CACHED = 10**6, 60  # mini-batch budgets in tokens
CASES: dict[str, tuple[float, dict[str, Any]]] = {  # angle weight and further settings
    "contrastive": (0.0, {}),
    "combined": (0.3, {}),  # AnglE's own gradient is the difference
    "everything": (0.3, {"dimensions": [32, 16], "guide": "init", "teacher": "init", "directions": list(DIRECTIONS)}),
}
ROWS: dict[str, dict[str, Any]] = {"scored": {"scored": True}, "triplets": {"negatives": 1}}
HEADS_ROWS: dict[str, dict[str, Any]] = {"triplets": {"negatives": 2}, "scored": {"scored": True}}


class Forked:
    """A fork of this process, which has imported everything, with the interface of `subprocess`."""

    def __init__(self, folder: Path, side: str) -> None:
        self.process = multiprocessing.get_context("fork").Process(target=_logged, args=(folder, side))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> int:
        self.process.join(timeout)
        assert self.process.exitcode is not None
        return self.process.exitcode


def _logged(folder: Path, side: str) -> None:
    with (folder / "log.txt").open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    main(str(folder), "1", side)


def start(folder: Path, processes: int, **side: Any) -> "subprocess.Popen[bytes] | Forked":
    """Train the symmetric side of the run in `folder` in another process, or in several through the launcher.

    In the launcher's, tokenising a set takes longer by the seconds in the environment variable TOKENISING.
    """
    if processes == 1:
        return Forked(folder, json.dumps(side))
    module = ["-m", "tests.support.training_process", str(folder), str(processes), json.dumps(side)]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CPU), "--quiet"]
    launcher += ["--num_processes", str(processes), "--main_process_port", "0"]
    command = [sys.executable, *launcher, *module]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, cwd=CONFIGS.parent, stdout=log, stderr=log)


def finish(folder: Path, processes: int, **side: Any) -> bytes:
    """Train to the end; returns the bytes of the weights."""
    done = start(folder, processes, **side).wait(timeout=300)
    assert done == 0, (folder / "log.txt").read_text()
    return (folder / "one/symmetric/model/model.safetensors").read_bytes()


def stop_at(folder: Path, processes: int, step: int, how: signal.Signals, **side: Any) -> int:
    """Train, send the signal once `step` is done, and wait for the end; returns the exit status.

    SIGKILL goes to the launcher and the ranks, each in its own session; other signals only to the launcher.
    """
    process = start(folder, processes, **side)
    metrics = folder / "one/symmetric/metrics.jsonl"
    until = time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        assert process.poll() is None and time.monotonic() < until, (folder / "log.txt").read_text()
        time.sleep(0.02)
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everyone if how == signal.SIGKILL else everyone[:1]:
        one.send_signal(how)
    psutil.wait_procs(everyone[1:], timeout=120)
    return process.wait(timeout=120)


def main(folder: str, processes: str, side: str) -> None:
    assert int(os.environ.get("WORLD_SIZE", "1")) == int(processes)
    config = prepared_run(Path(folder), {}, **json.loads(side))
    tokenise, seconds = sets._tokenise, float(os.environ.get("TOKENISING", 0))
    sets._tokenise = lambda *args: (time.sleep(seconds), tokenise(*args))[1]
    manifest = run_stage(CHAIN["symmetric"], config)
    assert PartialState().num_processes == int(processes)
    if dist.is_initialized():
        assert dist.group.WORLD is not None
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(seconds=config.timeout("symmetric"))
    assert manifest.status == "complete"


def gradient(
    item: TokenisedSet, case: str, budget: int, rank: int, world: int, model: torch.nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of one planned batch, from this rank's slice, and AnglE's logged share of it."""
    batch: GlobalBatch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0].slice(rank, world)
    model = model or tiny_model()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    angle_weight, settings = CASES[case]
    roles = SideConfig(**settings).auxiliary_models
    item = replace(item, others={role: random_vectors(item, seed=len(role)) for role in roles})
    features, labels = features_of(item, batch, budget, angle_weight)
    loss = planned_loss(wrapped, budget, **settings)
    loss(features, labels).backward()
    assert loss.angle_gradient_share is not None
    return gradients(model), loss.angle_gradient_share


def sets_of(folder: Path, kinds: dict[str, dict[str, Any]], negatives: int = 1) -> dict[str, TokenisedSet]:
    """A tokenised set of sixteen rows of each kind."""
    return {
        kind: tokenised(folder / kind, rows(16, **content), angle=True, negatives=negatives)
        for kind, content in kinds.items()
    }


def all_gradients(items: dict[str, TokenisedSet], rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """Gradients of every kind of rows, loss and budget, and AnglE's logged shares as `<kind> share <budget>`."""
    budgets = {"whole": ALL_IN_ONE, "cached": CACHED}
    found: dict[str, torch.Tensor] = {}
    for kind, case, (name, budget) in product(items, CASES, budgets.items()):
        found[f"{kind} {case} {name}"], share = gradient(items[kind], case, budget, rank, world)
        found |= {f"{kind} share {name}": share} if case == "combined" else {}
    return found


def heads_loss(temperature: float = 0.05) -> HeadsLoss:
    """The heads' loss on the tiny base, with new heads."""
    model = tiny_model().requires_grad_(False)
    add_heads(model, tiny_base(), seed=7)
    return HeadsLoss(model, temperature, ALL_IN_ONE)


def joint_loss(budget: int, **side: Any) -> JointLoss:
    """The loss of a side that trains the tiny base with new heads, of which not all sparse weights are equal."""
    model = tiny_model()
    heads = add_heads(model, tiny_base(), seed=7)
    torch.nn.init.normal_(heads.sparse.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return JointLoss(model, SideConfig(**{"temperature": 0.05, **side}), budget)


def heads_gradients(items: dict[str, TokenisedSet], rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """The gradient of one planned batch from this rank's slice: of frozen heads, and of a side that trains with its
    heads, with all graphs kept and with caching, by kind of rows."""
    found = {}
    for kind, item in items.items():
        batch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0].slice(rank, world)
        losses: dict[str, tuple[HeadsLoss | JointLoss, int]] = {
            "whole": (joint_loss(ALL_IN_ONE, false_negative_margin=0.0), ALL_IN_ONE),
            "cached": (joint_loss(CACHED, false_negative_margin=0.0), CACHED),
        }
        if kind == "triplets":
            losses["frozen"] = heads_loss(), CACHED
        for name, (loss, budget) in losses.items():
            model = loss.model
            if world > 1:
                loss.model = DistributedDataParallel(model, broadcast_buffers=False)
            loss(*features_of(item, batch, budget, 0.3 * (name != "frozen"))).backward()
            found[f"{kind} {name}"] = gradients(model)
    return found


def of_two_ranks(
    folder: Path, items: dict[str, TokenisedSet], work: Callable[..., dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """What `work` returns for the sets on two ranks: forks of this process, which has tokenised for both."""
    tiny_model()
    start_processes(run_rank, (2, folder, items, work), nprocs=2, start_method="fork")
    return torch.load(folder / "gradients.pt", weights_only=True)


def run_rank(
    rank: int, world: int, folder: Path, items: dict[str, TokenisedSet], work: Callable[..., dict[str, torch.Tensor]]
) -> None:
    """Join the group, and let rank 0 keep the averaged gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    assert dist.get_world_size() == world
    result = work(items, rank, world)
    if rank == 0:
        torch.save(result, folder / "gradients.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
