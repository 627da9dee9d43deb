"""Clean pairs from rows: start with `maker.py`; `constructions.py` defines how rows become pairs."""
