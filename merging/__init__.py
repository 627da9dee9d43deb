"""How several models become one: merge.py makes the merge and is the file to open first, choose.py its weights."""
