"""Merges other than weighted sums (TIES, DARE, SLERP, model stock, …), by sentence-transformers' merge over mergekit.

mergekit (LGPL-3.0) is an optional package. All models are in memory.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from merging.compatibility import carry_over, weight_folders
from pipeline.core.errors import INSTALL, UserError
from pipeline.core.models import stored_names
from pipeline.core.seeding import derived_seed

WITHOUT_BASE = ("slerp",)  # between the two trained models; all other methods use task vectors on the base


def mergekit_merge(
    models: Mapping[str, Path], method: str, parameters: Mapping[str, Mapping[str, float]], seed: int
) -> Any:
    """The merged sentence-transformers model, in float32 on the CPU.

    Args:
        models: compatible folders by name (`require_compatible`), the base first.
        method: one of mergekit's methods, such as `ties`.
        parameters: by method, such as `density`; missing ones have mergekit's defaults.
        seed: for methods that drop weights at random.

    Raises UserError: mergekit is not installed, or refuses the number of models or a parameter.
    """
    base, *others = (str(folder) for folder in models.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "merge", method) % 2**63)
        try:
            return SentenceTransformer.merge(
                others,
                method,
                base_model=None if method in WITHOUT_BASE else base,
                parameters=dict(parameters.get(method, {})),
                device="cpu",
                local_files_only=True,
            )
        except ImportError as error:
            remedy = f"{INSTALL} mergekit"
            raise UserError(f"{method} needs mergekit", where="config key merging.method", remedy=remedy) from error
        except (ValueError, TypeError) as error:
            what = f"mergekit refuses {method}: {error}"
            raise UserError(what, where=f"merging.parameters.{method}", remedy="change method or parameters") from error


def write_mergekit_model(merged: Any, base: Path, target: Path, dtype: str) -> None:
    """Write the folder `target`: the merged model's weights in `dtype`, everything else from the folder `base`."""
    carry_over(base, target, dtype)
    scratch = target / "weights"
    if not any(name.startswith("pooler.") for name in stored_names(base)):
        merged[0].model.pooler = None  # transformers initialised one at random
    merged.to(getattr(torch, dtype)).save(str(scratch))
    for part in weight_folders(base):
        for file in (scratch / part).glob("*.safetensors*"):
            shutil.move(file, target / part / file.name)
    shutil.rmtree(scratch)
