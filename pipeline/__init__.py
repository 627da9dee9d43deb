"""What every stage shares: the root config, artefact folders, user errors, console, seeding, tracking and the runner."""
