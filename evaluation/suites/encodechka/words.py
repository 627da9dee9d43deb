"""encodechka's named-entity tasks: a linear classifier tags words by their vectors."""

from collections.abc import Callable, Sequence

import numpy as np
import razdel
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

from evaluation.outcome import Measure, Outcome

OUTSIDE = "O"
Entity = tuple[str, int, int]  # type, first character, character after the last
WordVectors = Callable[[Sequence[list[str]]], list[np.ndarray]]  # texts as words -> [words, width] each


def tagged_words(text: str, entities: Sequence[Entity]) -> tuple[list[str], list[str]]:
    """Words of a text and their tags B-<type>, I-<type> or O.

    Earlier entities win. The first word of a text is never tagged: the reference code reads its index 0 as "no
    word", which is kept for comparability.
    """
    words = list(razdel.tokenize(text))
    tags = [OUTSIDE] * len(words)
    for kind, start, stop in entities:
        mark = "B"
        for index, word in enumerate(words):
            if index > 0 and word.start < stop and word.stop > start and tags[index] == OUTSIDE:
                tags[index] = f"{mark}-{kind}"
                mark = "I"
    return [word.text for word in words], tags


def entity_task(texts: Sequence[str], entities: Sequence[Sequence[Entity]], vectors: WordVectors) -> Outcome:
    """Macro-F1 over the tags of the test half, without O; items are the test texts, whose words belong together."""
    tagged = [tagged_words(*each) for each in zip(texts, entities, strict=True)]
    train, test = train_test_split(tagged, test_size=0.5, random_state=1)
    classifier = SGDClassifier(loss="log_loss", shuffle=True, random_state=1, early_stopping=False, tol=1e-4, n_jobs=-1)
    classifier.fit(_matrix(vectors, train), _tags(train))
    predicted, gold = classifier.predict(_matrix(vectors, test)), _tags(test)
    labels = sorted(set(gold) - {OUTSIDE})
    score = float(f1_score(gold, predicted, average="macro", labels=labels))
    columns = _counts_by_text(predicted, gold, labels, [len(words) for words, _ in test])
    per_tag = f1_score(gold, predicted, average=None, labels=labels)
    notes = {"tags": dict(zip(labels, map(float, per_tag), strict=True)), "words": len(gold)}
    return Outcome(columns, (Measure("macro_f1", score, "macro_f1", tuple(columns)),), notes)


def _tags(tagged: Sequence[tuple[list[str], list[str]]]) -> np.ndarray:
    return np.array([tag for _, tags in tagged for tag in tags])


def _matrix(vectors: WordVectors, tagged: Sequence[tuple[list[str], list[str]]]) -> np.ndarray:
    """All words' vectors [words, width]; float64 if a word has none, like the reference code's zeros."""
    found = np.concatenate(vectors([words for words, _ in tagged]))
    return found if found.any(axis=1).all() else found.astype(np.float64)


def _counts_by_text(
    predicted: np.ndarray, gold: np.ndarray, labels: list[str], sizes: list[int]
) -> dict[str, np.ndarray]:
    """Numbers of words [texts, tags] of each tag: correctly predicted, predicted, and gold."""
    text = np.repeat(np.arange(len(sizes)), sizes)
    guessed, true = (tags[:, None] == np.array(labels) for tags in (predicted, gold))  # [words, tags]
    counts = {}
    for name, words in (("hits", guessed & true), ("predicted", guessed), ("gold", true)):
        counts[name] = np.zeros((len(sizes), len(labels)), dtype=np.int64)
        np.add.at(counts[name], text, words)
    return counts
