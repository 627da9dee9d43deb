"""The stage `init`: the base with a smaller vocabulary or its full one, and a certificate of what is unchanged."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from configs.schema.config import Config
from pipeline.core.artefact import StageFolder, read_json, write_json
from pipeline.core.console import log
from pipeline.core.model_folder import read_tokenizer
from training.vocabulary.certificate import certify
from training.vocabulary.corpora import find_corpora, held_back_sets
from training.vocabulary.counting import count_pieces
from training.vocabulary.selection import OTHER, select
from training.vocabulary.shrinking import copy_base, shrink, write_id_map
from training.vocabulary.tokenizer_file import Ids, TokenizerFile

# Share of the pieces of dev and held-out sets to be kept. The demo keeps 99 %, and its init scores like its base; 61 %
# are kept where only data/example's training texts are counted: nDCG@10 on its held-out questions falls from 0.94 to
# 0.77.
ENOUGH = 0.95
SMALL = 10  # ids below this one are few
UNCHANGED = "The vocabulary is the base's: every text is segmented and embedded as by the base."


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Count, select, shrink, certify; returns the metrics for the manifest and the closing table."""
    base = stage.inputs["base"]
    if config.init.rule == "full":
        return keep_all(base, stage)
    tokenizer = TokenizerFile.read(base / "tokenizer.json")
    before = read_tokenizer(base / "tokenizer.json")
    corpora = find_corpora(config.init, config.languages, config.folder("data"), config.mirror)
    counts = count_pieces(corpora, before, config.languages, tokenizer.size, config.init.scripts)
    needed = needed_ids(base, before)
    selection = select(tokenizer, {**counts.occurrences, OTHER: counts.others}, config.init, config.languages, needed)
    share = warn_of_lost_pieces(config.folder("data"), before, selection.kept) if config.init.counts_pairs else None
    with stage.scratch() as scratch:
        (scratch / "vocabulary").mkdir()
        sizes = shrink(base, scratch, tokenizer, selection.kept)
        if sizes.padding_rows_dropped:
            log.info("dropped %d embedding rows that no id uses", sizes.padding_rows_dropped)
        write_id_map(scratch / "vocabulary/id_map.parquet", tokenizer, selection.kept, counts.occurrences)
        content = certify(config, base, scratch, tokenizer, before, corpora, counts, selection, sizes)
        write_json(scratch / "certificate.json", content)
    checked = content["checked"].values()
    return {
        "vocabulary before": sizes.vocabulary_before,
        "vocabulary after": sizes.vocabulary_after,
        "parameters before": sizes.parameters_before,
        "parameters after": sizes.parameters_after,
        **({} if share is None else {"pieces kept of dev and held-out sets": share}),
        "texts compared": sum(entry["compared"] for entry in checked),
        "texts covered": sum(entry["covered"] for entry in checked),
        "mismatches among covered texts": sum(entry["mismatches"] for entry in checked),
    }


def needed_ids(base: Path, tokenizer: Tokenizer) -> Ids:
    """Ids of the prompts, the model's own included, of every text's ends, and of tokens with a role.

    RoBERTa counts positions from the id of its <pad>, which is small: it may not move, so all below it are needed.
    """
    prompts = read_json(base / "config_sentence_transformers.json")["prompts"].values()
    settings = read_json(base / "tokenizer_config.json")
    roles = (tokenizer.token_to_id(text) for role, text in settings.items() if role.endswith("_token"))
    used = (text.ids for text in tokenizer.encode_batch(["", *prompts]))
    padding = tokenizer.token_to_id(settings["pad_token"]) or 0
    below = range(padding if padding < SMALL else 0)
    return np.unique(
        np.array([*chain.from_iterable(used), *(own for own in roles if own is not None), *below], np.int64)
    )


def keep_all(base: Path, stage: StageFolder) -> dict[str, Any]:
    """Copy the base as it is; its tokenizer may be of any kind."""
    with stage.scratch() as scratch:
        vocabulary, parameters = copy_base(base, scratch)
        sizes = {"vocabulary": vocabulary, "parameters": parameters}
        both = {f"{name}_{when}": size for name, size in sizes.items() for when in ("before", "after")}
        write_json(scratch / "certificate.json", {"guarantee": UNCHANGED, **both})
    return sizes


def warn_of_lost_pieces(data: Path, tokenizer: Tokenizer, kept: Ids) -> float | None:
    """The share of a dev or held-out set's pieces that are kept, the mean over the sets; warns where it is small."""
    shares = []
    for batches in held_back_sets(data):
        texts = (text for batch in batches for text in tokenizer.encode_batch_fast(batch.to_pylist()))
        ids = np.fromiter((token for text in texts for token in text.ids), np.int64)
        shares += [np.isin(ids, kept).mean()] if len(ids) else []
    if not shares:
        return None
    if (share := float(np.mean(shares))) < ENOUGH:
        what = "only %.0f %% of dev and held-out sets' pieces are kept: others are embedded worse than by the base"
        remedy = "count more texts, by init=opus or a corpus of kind text in init.corpora, or keep all by init=full"
        log.warning(f"{what}; {remedy}", 100 * share)
    return share
