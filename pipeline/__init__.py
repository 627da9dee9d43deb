"""What every stage shares: root config, artefact folders, user errors, console, seeding and the runner."""
