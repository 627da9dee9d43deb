"""Sparse and multi-vector heads, fitted to a frozen encoder or trained jointly with it. Open `fit.py` first."""
