"""Merges several models into one. Start with `merge.py`; `choose.py` has the methods of choosing weights."""
