"""What each rank of the gradient test runs; the ranks are fresh processes, so this module stands apart."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from configs.schema.training import SideConfig
from tests.support.planned_sets import features_of, gradients, planned_loss, rows, tiny_model, tokenised
from training.batch_plan import GlobalBatch, plan_batches

ONE_BATCH = SideConfig(batch_size=16, batch_multiple=8, bucket_batches=4, max_steps=1)
ALL_IN_ONE, CACHED = 10**6, 60  # mini-batch budgets in tokens
CASES = {"contrastive": 0.0, "combined": 0.3}  # angle weights; AnglE's own gradient is their difference
ROWS = {"scored": {"negatives": 0, "scored": True}, "triplets": {"negatives": 1, "scored": False}}


def gradient(folder: Path, kind: str, angle_weight: float, budget: int, rank: int, world: int) -> torch.Tensor:
    """The gradient of one planned batch, from this rank's slice."""
    item = tokenised(folder / kind, rows(16, **ROWS[kind]), angle=True)
    batch: GlobalBatch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0].slice(rank, world)
    model: torch.nn.Module = tiny_model()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    features, labels = features_of(item, batch, budget, angle_weight)
    planned_loss(wrapped, budget)(features, labels).backward()
    return gradients(model)


def all_gradients(folder: Path, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """Gradients of every kind of rows, loss and budget."""
    budgets = {"whole": ALL_IN_ONE, "cached": CACHED}
    return {
        f"{kind} {case} {name}": gradient(folder, kind, weight, budget, rank, world)
        for kind in ROWS
        for case, weight in CASES.items()
        for name, budget in budgets.items()
    }


def run_rank(rank: int, world: int, folder: str) -> None:
    """Join the group, and let rank 0 keep the averaged gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    assert dist.get_world_size() == world
    result = all_gradients(Path(folder) / f"rank{rank}", rank, world)
    if rank == 0:
        torch.save(result, Path(folder) / "gradients.pt")
    dist.barrier()
    dist.destroy_process_group()
