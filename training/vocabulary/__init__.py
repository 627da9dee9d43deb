"""A smaller vocabulary with a guarantee. Open `build.py` first: count, select, shrink, certify."""
