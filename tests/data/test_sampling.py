"""Dev slices and samples: chosen by text and seed only, and disjoint from training."""

from pathlib import Path

import numpy as np
import polars as pl

from configs.schema.data import DevConfig
from data.pair_files import PairWriter, write_keys
from data.pairs.hashing import NO_KEYS, text_hashes
from data.sampling import (
    DevSlice,
    apart_from,
    pair_texts,
    sample,
    whole_groups,
    without_trained_negatives,
    write_dev,
)

SCHEMA = {"anchor": pl.String, "positive": pl.String, "negatives": pl.List(pl.String)}


def frame(rows: list[tuple[str, str, list[str]]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def numbered(count: int, repeats: int = 1) -> pl.DataFrame:
    return frame([(f"a{n // repeats}", f"p{n}", []) for n in range(count)])


def split(
    pairs: pl.DataFrame, batch: int, anchors: int = 50, share: float = 0.1, seed: int = 42
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(train, dev) of a set that streams by in batches."""
    held = DevSlice(DevConfig(anchors=anchors, share=share), seed)
    train = [held.hold_back(part) for part in pairs.iter_slices(batch)]
    dev, surplus = held.finish()
    return pl.concat([*train, *surplus]), dev


def test_the_slice_has_whole_anchors_as_many_as_asked_and_loses_no_row() -> None:
    pairs = numbered(6000, repeats=3)
    train, dev = split(pairs, batch=500)
    assert dev["anchor"].n_unique() == 50 and len(dev) == 150
    assert not set(train["anchor"]) & set(dev["anchor"])
    assert set(train["positive"]) | set(dev["positive"]) == set(pairs["positive"])


def test_the_slice_does_not_depend_on_batches_and_is_the_same_for_a_question_of_two_sets() -> None:
    pairs = numbered(3000)
    dev = [set(split(pairs, batch)[1]["anchor"]) for batch in (17, 3000)]
    assert dev[0] == dev[1] != set(split(pairs, 3000, seed=43)[1]["anchor"])
    larger = set(split(numbered(3600), 400, anchors=60)[1]["anchor"])
    assert len(dev[0] & larger) >= 40  # the smallest keys of one set are among the smallest of the other


def test_a_small_set_gives_at_most_its_share() -> None:
    train, dev = split(numbered(30), batch=10, anchors=200, share=0.1)
    assert len(dev) <= 8 and len(train) + len(dev) == 30
    assert split(numbered(30), batch=10, anchors=0)[0].equals(numbered(30))


def test_rows_that_share_a_text_with_training_go_back_and_take_others_along() -> None:
    dev = frame([("a", "p1", []), ("b", "p2", []), ("c", "p3", []), ("d", "p4", []), ("b", "p4", [])])
    kept, back = apart_from(dev, pair_texts(frame([("x", "p1", ["c"])])))
    assert kept["anchor"].to_list() == ["b", "d", "b"] and back["anchor"].to_list() == ["a", "c"]
    kept, back = apart_from(dev, pair_texts(frame([("d", "y", [])])))
    assert kept["anchor"].to_list() == ["a", "c"]  # d is removed; b shares p4 with it and is removed too


def test_dev_rows_that_another_set_trains_on_remove_no_others(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "candidates/one.parquet", scored=False) as writer:
        writer.write(frame([("a", "b", []), ("b", "c", ["x", "n"]), ("c", "d", []), ("a", "e", [])]))
    with PairWriter(tmp_path / "candidates/other.parquet", scored=False) as writer:
        writer.write(frame([("f", "e", [])]))
    write_keys(tmp_path / "keys/one.parquet", NO_KEYS)
    write_keys(tmp_path / "keys/other.parquet", pair_texts(frame([("e", "x", [])])))
    assert write_dev(tmp_path, tmp_path, ["other", "one"]) == {"one": 2}
    dev = pl.read_parquet(tmp_path / "dev/one.parquet")
    assert dev["anchor"].to_list() == ["b", "c"] and dev["negatives"].to_list() == [["n"], []]  # x is trained, too
    assert not (tmp_path / "dev/other.parquet").exists()


def test_rows_that_share_texts_are_held_back_together_in_groups_for_which_there_is_room() -> None:
    dev = frame([("a", "b", []), ("k", "l", []), ("y", "z", [])])
    chain = frame([("b", "c", []), ("d", "c", [])])  # of a: with it three anchors
    others = frame([("m", "l", []), ("u", "v", [])])  # of k: with it two anchors
    for seed in range(8):
        staying, *joining = whole_groups(dev, [chain, others], seed)
        assert staying.tolist() in ([False, True, True], [True, False, False])
        assert joining[0].tolist() == [staying[0]] * 2 and joining[1].tolist() == [staying[1], False]
        assert staying[text_hashes(dev["anchor"], seed).argmin()]  # the first to be visited has room


def test_trained_negatives_leave_dev_rows() -> None:
    dev = frame([("a", "p", ["n1", "n2"]), ("b", "q", ["n1"]), ("c", "r", [])])
    assert without_trained_negatives(dev, pair_texts(frame([("x", "n1", [])])))["negatives"].to_list() == [
        ["n2"],
        [],
        [],
    ]


def test_keys_are_xxh3_of_the_texts_bytes() -> None:
    from xxhash import xxh3_64_intdigest

    texts = pl.Series(["", "мир", "a" * 1000, None, "ещё"])
    expected = [xxh3_64_intdigest((text or "").encode()) for text in texts]
    assert text_hashes(texts).tolist() == expected
    assert text_hashes(texts.slice(1, 3)).tolist() == expected[1:4]


def test_a_sample_is_the_same_for_any_batches_and_keeps_the_order() -> None:
    pairs = numbered(5000)
    samples = []
    for batch in (13, 5000):
        chosen, others = sample(pairs.iter_slices(batch), 100, seed=1)
        assert others == 4900
        samples.append(chosen)
    assert samples[0].equals(samples[1]) and len(samples[0]) == 100
    assert not samples[0].equals(sample([pairs], 100, seed=2)[0])
    places = [int(text[1:]) for text in samples[0]["positive"]]
    assert places == sorted(places) and 2000 < np.mean(places) < 3000
    chosen, others = sample(iter([numbered(5)]), 100, seed=1)
    assert chosen.equals(numbered(5)) and others == 0
