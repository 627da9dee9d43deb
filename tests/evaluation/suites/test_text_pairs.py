"""Items of tasks on pairs: pairs that share a text are one item."""

import numpy as np

from evaluation.suites.text_pairs import items_of_pairs


def test_pairs_that_share_a_text_directly_or_over_other_pairs_are_one_item() -> None:
    first = ["кот спит", "пёс лает", "снег идёт", "дождь идёт", "пёс лает"]
    second = ["пёс лает", "кот ест", "дождь идёт", "ночь темна", "пёс лает"]
    cats, _, rain, _, dog = items_of_pairs(first, second)
    assert items_of_pairs(first, second).tolist() == [cats, cats, rain, rain, dog] and cats == dog != rain
    assert items_of_pairs(second[::-1], first[::-1]).tolist() == [cats, rain, rain, cats, cats]  # in another task, too


def test_items_of_pairs_are_the_components_of_their_texts() -> None:
    rng = np.random.default_rng(3)
    first, second = ([f"фраза {number}" for number in rng.integers(0, 90, 60)] for _ in range(2))
    groups = [{one, other} for one, other in zip(first, second, strict=True)]
    for _ in range(len(groups)):  # until nothing joins
        groups = [set().union(*(other for other in groups if other & group)) for group in groups]
    items = items_of_pairs(first, second)
    same = [[items[i] == items[j] for i in range(60)] for j in range(60)]
    assert same == [[groups[i] == groups[j] for i in range(60)] for j in range(60)]
    assert 5 < len(set(items)) < 60
