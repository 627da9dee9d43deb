"""The ten tasks of encodechka (avidale/encodechka, commit 5e70bca) with their reference protocol."""
