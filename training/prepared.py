"""All sets of one side, tokenised, and their prompts."""

import dataclasses
from pathlib import Path

from sentence_transformers import SentenceTransformer

from configs.schema.training import SideConfig
from data.artefact import OWN_SIZE, set_files, shares
from pipeline.core.errors import UserError
from training.tokenization import Prompts, TokenisedSet, tokenised_set


@dataclasses.dataclass(frozen=True)
class PreparedSets:
    """What a run reads as tokens: training sets, and dev sets for their loss."""

    train: dict[str, TokenisedSet]
    dev: dict[str, TokenisedSet]


def prepare_sets(name: str, side: SideConfig, model: SentenceTransformer, data: Path, cache: Path) -> PreparedSets:
    """Tokenise the sets of the side `name`; raises UserError where there are none, or the config names unknown ones."""
    found = set_files(data, name)
    for unknown in side.sets.keys() - {path.stem for _, path in found}:
        raise UserError(
            f"no set of this side is called {unknown}",
            where=f"config key training.{name}.sets.{unknown}",
            remedy=f"choose among {', '.join(path.stem for _, path in found) or 'the sets of data.sources'}",
        )
    wanted = [(of, path) for of, path in found if path.stem not in side.sets or side.sets[path.stem].weight > 0]
    if not wanted:
        raise UserError(
            "there are no pairs to train on", where=f"{data}/{name}", remedy="add sources of this side to data"
        )
    prepared, share, tokenizer = PreparedSets({}, {}), shares(data), model.tokenizer
    for of, path in wanted:
        prompts = prompts_of(model, of)
        angle = of == "symmetric" and side.angle_weight > 0
        train = tokenised_set(path, tokenizer, prompts, side, angle, cache / "train", share.get(path.stem, OWN_SIZE))
        prepared.train[path.stem] = train
        dev = data / "dev" / path.name
        if dev.is_file():
            prepared.dev[path.stem] = tokenised_set(dev, tokenizer, prompts, side, angle, cache / "dev")
    return prepared


def prompts_of(model: SentenceTransformer, data_side: str) -> Prompts:
    """Symmetric sets take the query prompt on both sides, asymmetric ones query and document."""
    query = model.prompts.get("query") or ""
    document = model.prompts.get("document") or ""
    return Prompts(query, query if data_side == "symmetric" else document)
