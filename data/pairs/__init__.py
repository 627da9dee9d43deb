"""Clean pairs out of rows: open `maker.py` first; how rows become pairs stands in `constructions.py`."""
