"""Rows from sources: start with `rows.py`; it reads the files that `files.py` finds, in the formats of `formats.py`."""
