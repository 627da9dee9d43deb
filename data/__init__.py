"""Where pairs come from: sources, pair construction, cleaning, decontamination, dev rows and the ledger."""
