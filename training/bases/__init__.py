"""Base models: made on the spot, out of a package, or from the Hub. Open `make.py` first; a kind of base is a file."""
