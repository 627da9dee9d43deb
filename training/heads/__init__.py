"""Sparse and multi-vector heads, fitted to an encoder that stays as it is: open `fit.py` first."""
