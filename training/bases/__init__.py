"""Base models: made on the spot, out of an installed package, or from the Hub; each a sentence-transformers folder."""
