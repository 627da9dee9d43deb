"""Sources that are installed packages: a reader class named in the source's YAML."""

from collections.abc import Iterator
from importlib import import_module
from typing import Protocol

from configs.schema.data import SourceConfig
from pipeline.core.errors import UserError


class PairReader(Protocol):
    """A class whose instances give pairs; `reader_options` are its keyword arguments."""

    revision: str

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(anchor, positive) in a fixed order."""
        ...


def open_reader(name: str, source: SourceConfig) -> PairReader:
    """An instance of the source's reader class; raises UserError where class or package is missing."""
    assert source.reader is not None
    module, _, class_name = source.reader.rpartition(".")
    try:
        reader = getattr(import_module(module), class_name)
        if not (isinstance(reader, type) and hasattr(reader, "pairs")):
            raise AttributeError("a reader is a class with a method pairs")
    except (ImportError, AttributeError, ValueError) as error:
        remedy = "give it as package.module.Class"
        raise UserError(
            f"{name}: no reader {source.reader}", where=f"data.sources.{name}.reader", remedy=remedy
        ) from error
    try:
        return reader(**source.reader_options)
    except TypeError as error:
        where = f"data.sources.{name}.reader_options"
        raise UserError(f"{name}: {error}", where=where, remedy="compare with the reader's class") from error
