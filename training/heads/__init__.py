"""Sparse and multi-vector heads, fitted to an encoder that stays as it is, or trained along: open `fit.py` first."""
