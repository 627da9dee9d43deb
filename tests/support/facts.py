"""A run's card and page, checked against its artefacts."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from tests.support.runs import read_csv


def require_facts_of_artefacts(text: str, run: Path) -> None:
    """The page's text shows every set of the ledger, the certificate of the vocabulary, and the merge weights."""
    for entry in json.loads((run / "data" / "ledger.json").read_text())["sets"]:
        assert entry["title"] in text and f"{entry['built']:,}" in text
    certificate = json.loads((run / "init" / "certificate.json").read_text())
    assert certificate["guarantee"] in text and f"{certificate['parameters_after']:,}" in text
    weights = json.loads((run / "merge" / "weights.json").read_text())["weights"]
    assert all(f"{weight:.3f}" in text for weight in weights.values())


def read_by_the_hub(card: str, caplog: pytest.LogCaptureFixture) -> list[EvalResult]:
    """The scores that the Hub's own reader finds in a card's front matter, without a warning or a duplicate."""
    logger = logging.getLogger("huggingface_hub")  # the library's loggers don't propagate
    logger.addHandler(caplog.handler)
    with warnings.catch_warnings(action="error"):
        data = ModelCard(card, ignore_metadata_errors=False).data
        _, results = model_index_to_eval_results(data.to_dict()["model-index"])
    logger.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if record.name.startswith("huggingface_hub")] == []
    assert len({(result.unique_identifier, result.metric_type) for result in results}) == len(results)
    return results


def require_figures_of_artefacts(card: str, run: Path) -> None:
    """Every figure of the card's prose and tables is in a JSON or CSV file of the run, at the given precision."""
    known = _artefact_figures(run)
    prose = _prose(card).replace("95 %", "").replace("length 1", "").replace("−", "-")
    written = re.findall(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e-\d+)?", prose)
    written = [text for text in written if not re.fullmatch(r"-?\d\.?", text) or text == "2"]
    assert len(written) > 40
    for text in written:
        digits = len(text.partition(".")[2]) if "e" not in text else 2 - int(text.partition("e")[2])
        value = float(text.replace(",", ""))
        near = any(abs(value - number) <= 0.5 * 10.0**-digits + 1e-9 for number in known)
        assert near or text == "0.001", f"{text} is in no artefact"


def _artefact_figures(run: Path) -> set[float]:
    found: set[float] = set()
    for path in run.rglob("*.json"):
        if path.name != "tokenizer.json":
            found.update(_figures(json.loads(path.read_text(encoding="utf-8"))))
    for path in run.rglob("*.csv"):
        found.update(_figures(read_csv(path)))
    return found


def _figures(value: Any) -> Iterator[float]:
    """All numbers inside JSON-like contents."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, str):
        yield from (float(part) for part in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", value))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _figures(item)
    elif isinstance(value, list):
        for item in value:
            yield from _figures(item)


def _prose(card: str) -> str:
    """The card's text without front matter, code, identifiers and addresses."""
    text = card.split("---\n", 2)[2]
    return re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|[A-Za-z][\w.-]*\d[\w.-]*|\b[a-f\d]{40}\b", " ", text, flags=re.DOTALL)
