"""The ten tasks of encodechka (avidale/encodechka, commit 5e70bca) with their reference protocol."""

SENTENCE_TASKS = ("STS", "PI", "NLI", "SA", "TI", "IA", "IC", "ICX")
WORD_TASKS = ("NE1", "NE2")
