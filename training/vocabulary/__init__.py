"""A smaller vocabulary with a guarantee. Open `build.py` first: corpora, counting, selection, shrinking, certificate."""
