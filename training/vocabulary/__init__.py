"""A smaller vocabulary with a guarantee: counting, selection, editing in place, and the certificate."""
