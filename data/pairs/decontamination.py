"""Texts that must not be trained on, found by equality but for case, punctuation and spaces."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from data.pairs.cleaning import comparable
from data.pairs.hashing import Hashes, contained, text_hashes

HEAD, KEY = 256, 48  # characters read of a text, and of its comparable form, before the whole text is compared
# Files of the artefact `benchmarks`: texts that may be removed or reported, texts that always are removed, the account.
BENCHMARKS, SAMPLES, CHECKED = "benchmarks.parquet", "samples.parquet", "checked.json"


@dataclass(frozen=True)
class TextIndex:
    """Comparable forms of texts as sorted keys, with the name of what each belongs to.

    Most training texts differ from every evaluation text in the first characters already, so that the whole text is
    put into its comparable form only where the heads agree.
    """

    heads: Hashes
    texts: Hashes
    names: list[str]  # of `texts`, by position

    @classmethod
    def of(cls, named: dict[str, pl.Series]) -> "TextIndex":
        """The index of the texts under each name; a text under several names keeps the first."""
        forms = pl.concat(
            [
                pl.DataFrame(
                    {"form": comparable(texts), "name": [name] * len(texts)},
                    schema={"form": pl.String, "name": pl.String},
                )
                for name, texts in named.items()
            ]
            or [pl.DataFrame(schema={"form": pl.String, "name": pl.String})]
        )
        forms = forms.filter(pl.col("form").str.len_chars() > 0).unique("form", keep="first", maintain_order=True)
        keys = text_hashes(forms["form"])
        order = np.argsort(keys, kind="stable")
        heads = np.unique(text_hashes(forms["form"].str.slice(0, KEY)))
        return cls(heads, keys[order], forms["name"].gather(order).to_list())

    def find(self, texts: pl.Series) -> pl.Series:
        """For each text the name under which it is in the index, or null."""
        found = pl.Series(texts.name, [None] * len(texts), pl.String)
        likely = self._likely(texts)
        if len(likely):
            keys = text_hashes(comparable(texts.gather(likely)))
            hits = contained(keys, self.texts)
            if hits.any():
                places = np.searchsorted(self.texts, keys[hits])
                found = found.scatter(likely[hits], pl.Series([self.names[place] for place in places]))
        return found

    def _likely(self, texts: pl.Series) -> np.ndarray:
        """Positions of texts whose head is that of an indexed text, or whose head says too little."""
        if len(self.texts) == 0 or len(texts) == 0:
            return np.empty(0, np.int64)
        forms = comparable(texts.str.slice(0, HEAD))
        short = (forms.str.len_chars() < KEY) & (texts.str.len_chars() > HEAD)
        return np.flatnonzero(contained(text_hashes(forms.str.slice(0, KEY)), self.heads) | short.to_numpy())


def held_out_texts(folder: Path, names: list[str]) -> dict[str, pl.Series]:
    """Anchors and positives of held-out sets, by the name that the ledger gives to a find."""
    named: dict[str, pl.Series] = {}
    for name in names:
        table = pq.read_table(folder / f"{name}.parquet", columns=["anchor", "positive"])
        columns = [pl.Series(pl.from_arrow(table[column])) for column in ("anchor", "positive")]
        named[f"held out: {name}"] = pl.concat(columns)
    return named


def read_texts(path: Path, kind: str) -> dict[str, pl.Series]:
    """Texts of the artefact `benchmarks` by task, under the names that the ledger gives to a find."""
    parts = pl.read_parquet(path).partition_by("task", as_dict=True, maintain_order=True)
    return {f"{kind}: {task}": part["text"] for (task,), part in parts.items()}
