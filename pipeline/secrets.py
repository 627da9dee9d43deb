"""Tokens and passwords, kept out of everything that is written down: manifests, logs, error lines, tracked configs."""

import logging
import os
import re
from typing import Any

HIDDEN = "***"
NAMES = re.compile(r"(^|_)(TOKEN|API_KEY|ACCESS_KEY|SECRET|PASSWORD)$")  # of environment variables
SHORTEST = 8  # characters of such a variable's value; shorter ones would blank out ordinary words
PATTERNS = (
    (re.compile(r"(://)[^/\s:@'\"]*:[^/\s@'\"]+@"), rf"\1{HIDDEN}@"),  # user:password in an address
    (re.compile(r"([?&](?:access_token|api_key|key|password|sig|signature|token)=)[^&\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), HIDDEN),  # the Hub's tokens
)


def redacted(value: Any) -> Any:
    """The value with every secret in its texts replaced: known patterns, and values of variables such as HF_TOKEN."""
    return _redacted(value, _variables())


def _redacted(value: Any, variables: list[str]) -> Any:
    if isinstance(value, str):
        for secret in variables:
            value = value.replace(secret, HIDDEN)
        for pattern, replacement in PATTERNS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, dict):
        return {key: _redacted(item, variables) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item, variables) for item in value]
    return value


class RedactingFormatter(logging.Formatter):
    """Lines of the logs without secrets, whoever logs them."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _variables() -> list[str]:
    values = {value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST}
    return sorted(values, key=len, reverse=True)
