"""Rows of a source as frames of roles: types checked, labels mapped, nulls and bad rows refused or counted."""

from collections.abc import Iterator
from itertools import islice

import polars as pl
import pyarrow.types as kinds

from configs.schema.data import NEGATIVE_ROLES, NO_TEXTS, ROLES, SourceConfig, set_name
from data.sources.batch import (
    BATCH_ROWS,
    Batch,
    OptionalColumn,
    RowErrors,
    is_list,
    is_list_of_texts,
    is_text,
    names_like,
)
from data.sources.files import Located, PairReader
from data.sources.formats import batches
from pipeline.core.console import log

LIST_ROLES = ("pos", *NEGATIVE_ROLES)
ANY_ROLES = ("label", "order", "group")  # numbers are allowed


def role_frames(
    source: SourceConfig, rows: Located | PairReader, errors: RowErrors, *, complete: bool = True
) -> Iterator[pl.DataFrame]:
    """Frames with a column per role and, from files, `row`, the row's number in the set; only rows `where` selects.

    With `complete=False` the caller stops early, when some values of `where` may not have occurred yet.

    Raises UserError: an unset role, a missing column, a wrong type, a null text, an unknown label.
    """
    if not isinstance(rows, Located):
        pairs = rows.pairs()
        while some := list(islice(pairs, BATCH_ROWS)):
            yield pl.DataFrame(some, schema={"anchor": pl.String, "positive": pl.String}, orient="row")
        return
    needed_roles, _ = ROLES[source.construction]
    if missing := [role for role in needed_roles if not source.columns.get(role)]:
        keys = ", ".join(f"{errors.key}.columns.{role}" for role in missing)
        raise errors.refused("columns not configured", _found(source, rows, errors), f"set {keys}")
    negatives = {role: column for role, column in source.columns.items() if role in NEGATIVE_ROLES}
    needed = {column: None for role, column in source.columns.items() if role not in negatives} | source.where
    columns = [*needed, *(OptionalColumn(column) for column in negatives.values() if column not in needed)]
    found = not negatives
    number, values = 0, {column: set[str]() for column in source.where}
    for file in rows.files:
        for batch in batches(file, columns, errors, source):
            frame = _roles(batch, source, errors).with_columns(
                pl.int_range(number, number + batch.table.num_rows).alias("row")
            )
            found = found or any(frame[role].list.len().sum() for role in negatives)
            frame = _selected(frame, source, values)
            yield _checked(frame, batch, source, errors, number)
            number += batch.table.num_rows
    if complete and not found:
        log.warning("%s: no row has a negative in %s", set_name(errors.key), ", ".join(negatives.values()))
    if complete:
        _refuse_absent_values(source, values, errors)


def _found(source: SourceConfig, located: Located, errors: RowErrors) -> str:
    """The file, its columns with types, and the lengths of the first row's texts, to help set columns."""
    for batch in batches(located.files[0], ["*"], errors, source):
        first = batch.table.slice(0, 1).to_pylist()[0]
        parts = [
            f"{field.name}: {field.type}, {len(str(first[field.name]))} characters" for field in batch.table.schema
        ]
        return f"{batch.file}; columns found: " + "; ".join(parts)
    return f"{located.files[0].name}, which is empty"


def _roles(batch: Batch, source: SourceConfig, errors: RowErrors) -> pl.DataFrame:
    series = {}
    unset = {role: "" for role in ROLES[source.construction][1] if role in NEGATIVE_ROLES}  # matches no column
    for role, column in (unset | source.columns).items():
        if role in LIST_ROLES:
            lists = _lists(batch, role, column, errors)
            series[role] = lists.list.drop_nulls() if source.list_length is None else lists  # else positions matter
        else:
            series[role] = _typed(batch, role, column, errors)
    for column in source.where:
        series[f"where {column}"] = _as_text(batch, column, errors)
    return pl.DataFrame(series)


def _as_text(batch: Batch, column: str, errors: RowErrors) -> pl.Series:
    try:
        return pl.Series(pl.from_arrow(batch.table[column])).cast(pl.String)
    except pl.exceptions.PolarsError:
        what = f"can't select by column {column} of type {batch.table.schema.field(column).type}"
        raise errors.refused(what, batch.file, f"fix {errors.key}.where") from None


def _typed(batch: Batch, role: str, column: str, errors: RowErrors) -> pl.Series:
    kind = batch.table.schema.field(column).type
    wanted_type = pl.List(pl.String) if role in LIST_ROLES and is_list(kind) else pl.String()
    if batch.table[column].null_count == batch.table.num_rows:  # an all-null column has no type of its own
        return pl.Series(role, [None], wanted_type).new_from_index(0, batch.table.num_rows)
    fits, wanted = is_text(kind), "text"
    if is_list(kind) and role in LIST_ROLES:
        fits, wanted = is_list_of_texts(kind) or kinds.is_null(kind.value_type), "a list of texts"
    elif role in ANY_ROLES:
        fits, wanted = fits or kinds.is_integer(kind), "text or a whole number"
    elif role == "score":
        number = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind)
        fits, wanted = fits or number, "a number"
    if not fits:
        remedy = f"{role} needs {wanted}: fix {errors.key}.columns or the file"
        raise errors.refused(f"wrong type {kind} in column {column}", batch.file, remedy)
    return pl.Series(role, pl.from_arrow(batch.table[column])).cast(wanted_type)


def _lists(batch: Batch, role: str, column: str, errors: RowErrors) -> pl.Series:
    """One list of texts per row, from one column, of lists or texts, or from all that the pattern matches.

    A row without texts gets an empty list.
    """
    names = names_like(column, batch.table.column_names)
    none = pl.Series(role, [[]], dtype=pl.List(pl.String))
    if not names:
        return none.new_from_index(0, batch.table.num_rows)
    columns = [_typed(batch, role, name, errors).alias(name) for name in names]
    columns = [some.fill_null(none) if some.dtype == none.dtype else some for some in columns]
    if len(columns) == 1 and columns[0].dtype == none.dtype:
        return columns[0].alias(role)
    return pl.DataFrame(columns).select(pl.concat_list(names).list.drop_nulls().alias(role))[role]


def _selected(frame: pl.DataFrame, source: SourceConfig, values: dict[str, set[str]]) -> pl.DataFrame:
    for column, wanted in source.where.items():
        values[column].update(frame[f"where {column}"].drop_nulls().unique().to_list())
        frame = frame.filter(pl.col(f"where {column}").is_in(wanted)).drop(f"where {column}")
    return frame


def _refuse_absent_values(source: SourceConfig, values: dict[str, set[str]], errors: RowErrors) -> None:
    for column, wanted in source.where.items():
        if absent := sorted(set(wanted) - values[column]):
            there = ", ".join(sorted(values[column])[:12]) or "none"
            remedy = f"values there: {there}; fix {errors.key}.where"
            raise errors.refused(f"no row has {', '.join(absent)}", f"column {column}", remedy)


def _checked(frame: pl.DataFrame, batch: Batch, source: SourceConfig, errors: RowErrors, first: int) -> pl.DataFrame:
    """The frame without rows that lack a value or have a wrong one; nulls that `nulls: drop` allows become empty."""

    def without(frame: pl.DataFrame, bad: pl.Series, reason: str, shown: str = "", hint: str = "") -> pl.DataFrame:
        if not bad.any():
            return frame
        errors.bad(reason, batch.row(frame["row"].filter(bad)[0] - first) + shown, int(bad.sum()), hint=hint)
        return frame.filter(~bad)

    for role, column in source.columns.items():
        if role in NEGATIVE_ROLES:
            continue
        if role == "pos":
            frame = without(frame, frame["pos"].list.len() == 0, f"no text in column {column}")
        elif source.nulls == "drop" and role not in NO_TEXTS:
            frame = frame.with_columns(pl.col(role).fill_null(""))
        else:
            hint = "" if role in NO_TEXTS else f"set {errors.key}.nulls to drop"
            frame = without(frame, frame[role].is_null(), f"null in column {column}", hint=hint)
    if source.list_length is not None and source.construction == "query_pos_neg":
        lengths = pl.col("pos").list.len(), pl.col("neg").list.len()
        wrong = (lengths[0] != source.list_length) | ~lengths[1].is_in([0, source.list_length])
        reason = f"the lists of pos and neg must have {source.list_length} texts each, or neg none"
        frame = without(frame, frame.select(wrong).to_series(), reason)
    if source.construction == "nli":
        names = frame["label"].replace_strict(source.labels, default=None, return_dtype=pl.String).alias("label")
        unknown, known = ", ".join(frame["label"].filter(names.is_null()).head(1)), ", ".join(source.labels)
        reason = f"unknown label (known: {known})"  # without the label itself: rows are counted by reason
        frame = without(frame.with_columns(names), names.is_null(), reason, f": {unknown}")
    if source.construction == "scored_pairs":
        assert source.score_range is not None
        least, most = source.score_range
        numbers = frame["score"].str.strip_chars().cast(pl.Float64, strict=False)
        right = numbers.is_between(least, most).fill_null(False)  # also where it is not a number
        frame = without(frame.with_columns(numbers), ~right, f"score is not a number from {least:g} to {most:g}")
    return frame
