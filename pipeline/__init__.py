"""How stages run. Open `chain.py` first: the whole chain on one page; `core/` is what all stages build on."""
