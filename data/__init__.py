"""Where pairs come from. Start with `prepare.py`, then follow a row.

prepare (which sets are built) → set_builder (one of them) → sources/files → sources/rows, by sources/formats →
pairs/maker, by constructions, cleaning and decontamination → sampling (cap, dev rows) → pair_files → ledger.
"""
