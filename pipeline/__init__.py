"""How stages run alike. Open `chain.py` first: the whole chain on one page; `core/` is the ground below the stages."""
