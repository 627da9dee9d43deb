"""encodechka's protocol the slow way, text by text, written only from its description: an oracle for the tests."""

import csv
import functools
import json
import zlib
from pathlib import Path

import numpy as np
import razdel
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import KFold, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from transformers import AutoModel, AutoTokenizer

Vectors = dict[str, np.ndarray]


class SlowModel:
    """One text at a time through transformers."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @functools.cache  # noqa: B019
    def sentence(self, text: str) -> Vectors:
        batch = self.tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            output = self.encoder(**batch)
        found = {"cls": output.last_hidden_state[0, 0], "mean": output.last_hidden_state[0].mean(0)}
        if output.pooler_output is not None:
            found["pooler"] = output.pooler_output[0]
        raw = {name: vector.numpy() for name, vector in found.items()}
        return raw | {f"{name}_norm": vector / np.linalg.norm(vector) for name, vector in raw.items()}

    def word(self, words: list[str]) -> list[np.ndarray]:
        batch = self.tokenizer(words, is_split_into_words=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = self.encoder(**batch).last_hidden_state[0].numpy()
        places: list[list[int]] = [[] for _ in words]
        for token, word in enumerate(batch.word_ids()):
            if word is not None:
                places[word].append(token)
        return [hidden[tokens].mean(0) if tokens else np.zeros(hidden.shape[1]) for tokens in places]


class WordsByName(SlowModel):
    """Word vectors that say which word it is, so that a tagger has something to learn; every tenth word has none."""

    def word(self, words: list[str]) -> list[np.ndarray]:
        seeds = [zlib.crc32(word.lower().encode()) for word in words]
        return [np.random.default_rng(s).normal(size=48) if s % 10 else np.zeros(48) for s in seeds]


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stacked(model: SlowModel, texts: list[str]) -> Vectors:
    vectors = [model.sentence(text) for text in texts]
    return {name: np.stack([vector[name] for vector in vectors]) for name in vectors[0]}


def pairs(model: SlowModel, data: list[dict[str, str]], first: str, second: str) -> dict[str, np.ndarray]:
    one, two = (stacked(model, [row[column] for row in data]) for column in (first, second))
    return {name: (one[name] * two[name]).sum(axis=1) for name in one}


def similarity(model: SlowModel, folder: Path, name: str, first: str, second: str, gold: str) -> float:
    data = rows(folder, name)
    grades = [float(row[gold]) for row in data]
    return max(spearmanr(dots, grades).statistic for dots in pairs(model, data, first, second).values())


def inference(model: SlowModel, folder: Path) -> float:
    data = rows(folder, "xnli_ru.csv")
    labels = np.array([row["gold_label"] for row in data])
    scores = []
    for dots in pairs(model, data, "sentence1", "sentence2").values():
        right = 0
        for train, test in KFold(3, shuffle=True, random_state=1).split(dots):
            fitted = LogisticRegression(max_iter=10000).fit(dots[train, None], labels[train])
            right += int((fitted.predict(dots[test, None]) == labels[test]).sum())
        scores.append(right / len(labels))
    return max(scores)


def classified(model: SlowModel, folder: Path, stem: str, label: str, metric: str, train_text: str = "text") -> float:
    train, test = rows(folder, f"{stem}_train.csv"), rows(folder, f"{stem}_test.csv")
    x, y = stacked(model, [row[train_text] for row in train]), stacked(model, [row["text"] for row in test])
    learnt, gold = [row[label] for row in train], np.array([row[label] for row in test])
    scores = []
    for name in x:
        regression = LogisticRegression(max_iter=10000).fit(x[name], learnt)
        if metric == "roc_auc":
            scores.append(roc_auc_score(gold, regression.predict_proba(y[name])[:, 1]))
            continue
        neighbours = KNeighborsClassifier(3, weights="distance").fit(x[name], learnt)
        scores += [np.mean(classifier.predict(y[name]) == gold) for classifier in (regression, neighbours)]
    return float(max(scores))


def tags(text: str, entities: list[tuple[str, int, int]]) -> tuple[list[str], list[str]]:
    """Walks over an entity's characters; a word with index 0 counts as no word."""
    words = list(razdel.tokenize(text))
    owner = {place: index for index, word in enumerate(words) for place in range(word.start, word.stop)}
    found = ["O"] * len(words)
    for kind, start, stop in entities:
        begun = False
        for place in range(start, stop):
            index = owner.get(place, 0)
            if index and found[index] == "O":
                found[index] = ("I-" if begun else "B-") + kind
                begun = True
    return [word.text for word in words], found


def entities(model: SlowModel, folder: Path, name: str) -> float:
    data = json.loads((folder / name).read_text(encoding="utf-8"))
    halves = train_test_split(data["texts"], data["labels"], test_size=0.5, random_state=1)
    parts = []
    for texts, labels in ((halves[0], halves[2]), (halves[1], halves[3])):
        tagged = [tags(text, found) for text, found in zip(texts, labels, strict=True)]
        vectors = [vector for words, _ in tagged for vector in model.word(words)]
        parts.append((np.stack(vectors), np.array([tag for _, marks in tagged for tag in marks])))
    (x, learnt), (y, gold) = parts
    classifier = SGDClassifier(loss="log_loss", random_state=1, tol=1e-4).fit(x, learnt)
    return float(f1_score(gold, classifier.predict(y), average="macro", labels=sorted(set(gold) - {"O"})))


SLOW = {
    "STS": lambda m, f: similarity(m, f, "stsb_dev.csv", "sentence1", "sentence2", "similarity_score"),
    "PI": lambda m, f: similarity(m, f, "para_gold.csv", "text_1", "text_2", "class"),
    "NLI": inference,
    "SA": lambda m, f: classified(m, f, "SentiRuEval2016_small", "answer", "accuracy"),
    "TI": lambda m, f: classified(m, f, "toxic", "toxic", "roc_auc"),
    "IA": lambda m, f: classified(m, f, "inappropriate", "y", "roc_auc"),
    "IC": lambda m, f: classified(m, f, "intents", "label", "accuracy"),
    "ICX": lambda m, f: classified(m, f, "intents", "label", "accuracy", "answer"),
    "NE1": lambda m, f: entities(m, f, "factru.json"),
    "NE2": lambda m, f: entities(m, f, "rudrec.json"),
}
