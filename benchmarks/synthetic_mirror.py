"""A mirror with the layout, row counts and text lengths of the card's 21 sets, in made-up Russian words.

Label counts, groups and repeated anchors follow the known figures of the real sets, so that every construction's
counts can be checked at full size without the real files.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

SYLLABLES = [
    "ка", "ло", "ми", "ра", "се", "ту", "по", "ве", "на", "ди", "го", "ру", "ша", "че", "ло",
    "бы", "зи", "не", "та", "ко", "сво", "при", "раз", "под", "пере", "вы", "ста", "жи", "мо",
    "ли", "ны", "ние", "ть", "ся", "ми", "ого", "ей", "ами", "ться", "лось", "ость", "ский", "ная",
]  # fmt: skip
POOL_CHARACTERS = 4_000_000
ROWS_AT_ONCE = 5_000


class Texts:
    """Seeded texts of about a given length, cut from a pool; each starts with a unique word."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.Generator(np.random.PCG64(seed))
        words = ["".join(self.random.choice(SYLLABLES, size)) for size in self.random.integers(1, 5, 20_000)]
        chosen = self.random.zipf(1.3, POOL_CHARACTERS // 6) % len(words)
        ends = self.random.random(len(chosen))
        parts = (
            words[word] + (".\n" if end < 0.01 else ". " if end < 0.08 else ", " if end < 0.16 else " ")
            for word, end in zip(chosen, ends, strict=True)
        )
        self.pool = "".join(parts)
        self.number = 0

    def many(self, count: int, length: float) -> list[str]:
        """`count` different texts; one in a hundred has markup or stray spaces."""
        sizes = np.maximum(12, self.random.gamma(4.0, length / 4.0, count)).astype(int)
        starts = self.random.integers(0, len(self.pool) - sizes.max() - 1, count)
        dirty = self.random.random(count) < 0.01
        texts = []
        for start, size, soiled in zip(starts.tolist(), sizes.tolist(), dirty.tolist(), strict=True):
            self.number += 1
            text = f"{self._word(self.number)} {self.pool[start : start + size].strip()}"
            texts.append(f"  <b>{text}</b>&nbsp; " if soiled else text)
        return texts

    def _word(self, number: int) -> str:
        """The number spelled in syllables, so that no two texts have the same letters."""
        letters = ""
        while number:
            number, digit = divmod(number, len(SYLLABLES))
            letters += SYLLABLES[digit]
        return letters.capitalize()


class Mirror:
    """Writes the sets below `folder`, each with `share` of its rows."""

    def __init__(self, folder: Path, share: float) -> None:
        self.folder, self.share = folder, share
        self.texts = Texts(seed=7)

    def size(self, rows: int) -> int:
        """The mirror's row count for `rows` of the real set."""
        return max(30, round(rows * self.share))

    def write(self) -> None:
        """All 21 sets."""
        self.allnli()
        self.mednli()
        self.rcb()
        self.terra()
        self.tapaco()
        self.ru_wanli()
        self.ru_hnp()
        self.retrieval()
        self.articles()
        self.two_columns()

    # writing

    def _place(self, path: str) -> Path:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _parquet(self, path: str, chunks: Iterator[dict[str, list]]) -> None:
        writer = None
        for chunk in chunks:
            table = pa.table(chunk)
            writer = writer or pq.ParquetWriter(self._place(path), table.schema, compression="snappy")
            writer.write_table(table, row_group_size=1000)
        if writer:
            writer.close()

    def _jsonl(self, path: str, chunks: Iterator[dict[str, list]]) -> None:
        with self._place(path).open("wb") as file:
            for chunk in chunks:
                pl.DataFrame(chunk).write_ndjson(file)

    def _csv(self, path: str, chunks: Iterator[dict[str, list]]) -> None:
        with self._place(path).open("wb") as file:
            for number, chunk in enumerate(chunks):
                pl.DataFrame(chunk).write_csv(file, include_header=number == 0)

    def _columns(self, rows: int, **lengths: float) -> Iterator[dict[str, list]]:
        """Chunks of text columns with the given mean lengths."""
        for start in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - start)
            yield {name: self.texts.many(count, length) for name, length in lengths.items()}

    # symmetric sets

    def _labelled(self, premises: int, labels: dict[str, int], length: float) -> Iterator[tuple[str, str, str]]:
        """(premise, hypothesis, label): each label cycles through the premises, so that many have several labels."""
        texts = self.texts.many(premises, length)
        for label, count in labels.items():
            hypotheses = self.texts.many(count, length * 0.6) if count else []
            for position, hypothesis in enumerate(hypotheses):
                yield texts[position % premises], hypothesis, label

    def allnli(self) -> None:
        """1,756,548 rows; 282,644 premises of the three English sets have an entailment and a contradiction."""
        triples, rows = self.size(282_644), self.size(1_756_548)
        sources = ["snli"] * 55 + ["mnli"] * 40 + ["anli_r1", "anli_r1", "anli_r2", "anli_r3", "anli_r3"]

        def chunks() -> Iterator[dict[str, list]]:
            for start in range(0, triples, ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, triples - start)
                yield self._nli_chunk(count, ("entailment", "neutral", "contradiction"), start, sources)
            for start in range(3 * triples, rows, ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, rows - start)
                kept = start < 3 * triples + (rows - 3 * triples) // 3  # a third: premises without a contradiction
                yield self._nli_chunk(count, ("entailment",), start, sources if kept else ["fever", "qnli"])

        self._parquet("cointegrated/nli-rus-translated-v2021/data/train-00000-of-00001.parquet", chunks())

    def _nli_chunk(self, count: int, labels: tuple[str, ...], start: int, sources: list[str]) -> dict[str, list]:
        each = len(labels)
        premises = [text for text in self.texts.many(count, 75) for _ in labels]
        rows = count * each
        return {
            "premise": [f"premise {start + row // each} {'of the English set ' * 3}" for row in range(rows)],
            "hypothesis": ["a hypothesis of the English set"] * rows,
            "label": [*labels] * count,
            "source": [sources[(start + row // each) % len(sources)] for row in range(rows)],
            "split": ["train"] * rows,
            "premise_ru": premises,
            "hypothesis_ru": self.texts.many(rows, 42),
            "reverse_entailment_score": [0.5] * rows,
            "len_ratio": [1.0] * rows,
            "idx": [start * each + row for row in range(rows)],
        }

    def mednli(self) -> None:
        """11,232 rows, 3,744 of each label, 3,699 distinct premises."""
        each = self.size(3744)
        rows = list(
            self._labelled(self.size(3699), dict.fromkeys(("entailment", "neutral", "contradiction"), each), 110)
        )
        chunk = {
            "ru_sentence1": [row[0] for row in rows],
            "ru_sentence2": [row[1] for row in rows],
            "gold_label": [row[2] for row in rows],
            "pairID": [str(n) for n in range(len(rows))],
        }
        self._jsonl("physionet/rumednli/ru_mli_train_v1.jsonl", iter([chunk]))

    def rcb(self) -> None:
        """438 rows: 155 entailments, 80 contradictions, 203 neutral; 422 distinct premises."""
        self._superglue("rcb", 422, {0: 155, 1: 80, 2: 203}, verb="сказать", negation="no_negation")

    def terra(self) -> None:
        """2,616 rows: 1,359 entailments, 1,257 others; 1,617 distinct premises."""
        self._superglue("terra", 1617, {0: 1359, 1: 1257})

    def _superglue(self, task: str, premises: int, labels: dict[int, int], **constants: str) -> None:
        sizes = {str(label): self.size(count) for label, count in labels.items()}
        rows = list(self._labelled(self.size(premises), sizes, 160))
        chunk: dict[str, list] = {"premise": [row[0] for row in rows], "hypothesis": [row[1] for row in rows]}
        chunk |= {name: [value] * len(rows) for name, value in constants.items()}
        chunk |= {"idx": list(range(len(rows))), "label": [int(row[2]) for row in rows]}
        self._parquet(f"RussianNLP/russian_super_glue/{task}/train/0000.parquet", iter([chunk]))

    def tapaco(self) -> None:
        """251,263 sentences in 91,240 sets of two and more."""
        sets, sentences = self.size(91_240), self.size(251_263)
        groups = np.sort(
            np.concatenate([np.repeat(np.arange(sets), 2), self.texts.random.integers(0, sets, sentences - 2 * sets)])
        )

        def chunks() -> Iterator[dict[str, list]]:
            for start in range(0, sentences, ROWS_AT_ONCE):
                some = groups[start : start + ROWS_AT_ONCE].tolist()
                yield {
                    "paraphrase_set_id": [str(group) for group in some],
                    "sentence_id": [str(10_000_000 + start + row) for row in range(len(some))],
                    "paraphrase": self.texts.many(len(some), 28),
                    "lists": [["907"]] * len(some),
                    "tags": [[""]] * len(some),
                    "language": ["ru"] * len(some),
                }

        self._parquet("community-datasets/tapaco/ru/train-00000-of-00001.parquet", chunks())

    def ru_wanli(self) -> None:
        """100,000 rows, 35,455 of them entailments; 32,253 of these have a contradiction of the same premise."""
        entailed, contradicted, rows = self.size(35_455), self.size(32_253), self.size(100_000)
        labels = {"entailment": entailed, "contradiction": contradicted, "neutral": rows - entailed - contradicted}
        made = list(self._labelled(entailed, labels, 85))
        chunk = {
            "premise": [row[0] for row in made],
            "hypothesis": [row[1] for row in made],
            "label": [row[2] for row in made],
        }
        self._parquet("deepvk/ru-WANLI/data/train.parquet", iter([chunk]))
        self._parquet("deepvk/ru-WANLI/data/val.parquet", iter([{name: column[:30] for name, column in chunk.items()}]))

    def ru_hnp(self) -> None:
        """100,000 sentences with five positives and five negatives each."""

        def chunks(rows: int) -> Iterator[dict[str, list]]:
            for start in range(0, rows, ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, rows - start)
                lists = [[self.texts.many(5, 80) for _ in range(count)] for _ in ("pos", "neg")]
                yield {"query": self.texts.many(count, 80), "pos": lists[0], "neg": lists[1]}

        self._parquet("deepvk/ru-HNP/train.parquet", chunks(self.size(100_000)))
        self._parquet("deepvk/ru-HNP/val.parquet", chunks(self.size(590)))

    # asymmetric sets

    def retrieval(self) -> None:
        """MIRACL, Mr. TyDi (sharing most questions) and MLDR."""
        questions = self.texts.many(self.size(5366), 45)
        judged = questions[: self.size(4683)]
        rows = [judged[row % len(judged)] for row in range(self.size(10_000))]
        self._triplets("sentence-transformers/miracl/ru-triplet-100", rows, 550, 100)
        self._triplets("sentence-transformers/mr-tydi/ru-triplet-100", questions, 550, 100)
        self._triplets("sentence-transformers/mldr/ru-triplet", self.texts.many(self.size(1864), 90), 9700, 1)

    def _triplets(self, path: str, anchors: list[str], length: float, negatives: int) -> None:
        names = ["negative"] if negatives == 1 else [f"negative_{number}" for number in range(1, negatives + 1)]

        def chunks() -> Iterator[dict[str, list]]:
            for start in range(0, len(anchors), 500):
                some = anchors[start : start + 500]
                columns: dict[str, list] = {"anchor": some, "positive": self.texts.many(len(some), length)}
                yield columns | {name: self.texts.many(len(some), length) for name in names}

        self._parquet(f"{path}/train-00000-of-00001.parquet", chunks())

    def articles(self) -> None:
        """MLSUM, XL-Sum and Gazeta: title, text, summary; Gazeta has 120 articles twice."""
        self._parquet(
            "mteb/mlsum/ru/train-00000-of-00001.parquet",
            self._columns(self.size(25_556), title=60, text=2300, summary=130),
        )
        self._parquet(
            "csebuetnlp/xlsum/russian/train/0000.parquet",
            self._columns(self.size(62_243), title=55, summary=150, text=3600),
        )
        self._jsonl(
            "IlyaGusev/gazeta/gazeta_train.jsonl",
            self._repeating(120, self._columns(self.size(60_964), title=60, text=4400, summary=330)),
        )
        self._jsonl(
            "IlyaGusev/gazeta/gazeta_val.jsonl", self._columns(self.size(500), title=60, text=4400, summary=330)
        )

    def _repeating(self, repeated: int, chunks: Iterator[dict[str, list]]) -> Iterator[dict[str, list]]:
        """The first chunk's last rows are copies of its first ones."""
        count = self.size(repeated) if self.share < 1 else repeated
        for number, chunk in enumerate(chunks):
            if number == 0 and len(chunk["title"]) > 2 * count:
                chunk = {name: column[:-count] + column[:count] for name, column in chunk.items()}
            yield chunk

    def two_columns(self) -> None:
        """The sets of (short text, long text)."""
        parquet = {
            "zloelias/lenta-ru/data/train-00000-of-00001.parquet": (185_972, {"title": 60, "text": 1300}),
            "0x7o/fialka-v1/data/train-00000-of-00001.parquet": (130_000, {"prompt": 90, "answer": 650}),
            "d0rj/gsm8k-ru/data/train-00000-of-00001.parquet": (7473, {"question": 230, "answer": 260}),
            "d0rj/dialogsum-ru/data/train-00000-of-00001.parquet": (12_460, {"dialogue": 850, "summary": 140}),
            "d0rj/samsum-ru/data/train-00000-of-00001.parquet": (14_731, {"dialogue": 550, "summary": 120}),
            "CarlBrendt/Summ_Dialog_News/data/train-00000-of-00001.parquet": (75_697, {"info": 3700, "summary": 290}),
        }
        for path, (rows, lengths) in parquet.items():
            self._parquet(path, self._columns(self.size(rows), **lengths))
        self._jsonl("its5Q/panorama/panorama.jsonl", self._columns(self.size(11_024), title=70, body=1250))
        self._jsonl("TarasHu/pravoIsrael/pravoIsrael.json", self._columns(self.size(26_364), question=260, answer=700))
        self._csv(
            "Milana/russian_keywords/russian_keywords_dataset.csv",
            self._columns(self.size(16_461), keywords=90, title=80, text=11_000),
        )
