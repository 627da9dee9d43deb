"""The ground that every stage stands on: artefacts, errors, console, hub, models; it imports no stage."""
