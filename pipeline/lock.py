"""`make lock`: asks the Hub for the current commits of everything that a profile reads there, and locks these."""

from collections.abc import Iterator

from configs.schema.config import Config
from pipeline.application import hydra_application
from pipeline.core.console import progress, show_table
from pipeline.core.hub import COMMIT, Revision, commit_on_hub, hub_errors, hub_model, lock_file, read_lock, write_lock


def lock(config: Config) -> None:
    """Write the lock file and show its new lines; raises UserError if the Hub does not answer."""
    wanted = sorted({item for item in hub_revisions(config) if not COMMIT.fullmatch(item.revision)})
    before, commits = read_lock(), {}
    for item in progress(wanted, "asking the Hub"):
        where, key = f"{item.hub} at {item.revision}", "its hub and revision in configs"
        with hub_errors(item.hub, where, key, "then make lock again"):
            commits[item] = commit_on_hub(item)
    write_lock(commits)
    rows = [
        [item.hub, item.revision, before.get(item, "–")[:12], commit[:12]]
        for item, commit in commits.items()
        if before.get(item) != commit
    ]
    show_table(f"new in {lock_file()}: {len(rows)} of {len(commits)}", ["Hub id", "revision", "before", "now"], rows)


def hub_revisions(config: Config) -> Iterator[Revision]:
    """Every revision that the stages of this config would read from the Hub."""
    for source in config.data.all_sources.values():
        if source.hub and not source.local_only and (source.dev_files or not source.path):
            yield Revision("dataset", source.hub, source.revision)
            yield from (Revision("dataset", part.hub, part.revision) for part in source.also)
    if config.base.kind == "hub" and (asked := hub_model(str(config.base.hub), config.base.revision)):
        yield asked
    others = config.auxiliary_models("data", *config.stages, own=False)
    yield from filter(None, map(hub_model, [*others.values(), *config.evaluation.models]))
    for corpus in config.init.counted.values():
        if corpus.kind == "hub" and corpus.hub:
            yield Revision("dataset", corpus.hub, corpus.revision)


main = hydra_application(lock)

if __name__ == "__main__":
    main()
