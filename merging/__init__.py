"""How several models become one. Open `merge.py` first; `choose.py` holds the methods of choosing weights."""
