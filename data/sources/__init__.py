"""Rows out of sources: open `rows.py` first; it reads what `files.py` finds in the formats of `formats.py`."""
