"""`make plan`: the work and cost of training and evaluation, without running them."""

from collections.abc import Callable, Iterator

from configs.schema.config import SIDES, SIDES_READ, Config
from pipeline.application import hydra_application
from pipeline.core.console import show_table
from training.batches import warn_of_small_steps, warn_of_untried
from training.cost_model import Devices, Shape, devices_of, shape_of_run, side_memory, training_flops
from training.workload import Work, work_of

GIB = 2**30


def show(config: Config) -> None:
    """Print the work and cost of the config's stages."""
    shape, devices = shape_of_run(config), devices_of(config)
    show_training(config, shape, devices)
    if "evaluate" in config.stages:
        show_scoring(config, shape, devices)


def show_training(config: Config, shape: Shape, devices: Devices) -> None:
    """Print the work and cost of every training stage among the config's stages."""
    works = {name: work_of(config, name, shape, devices) for name in SIDES_READ if config.trains(name)}
    rows: list[tuple[str, Callable[[Work], object]]] = [
        ("numbers from", lambda work: work.source),
        ("batches (steps)", lambda work: work.batches),
        ("rows", lambda work: round(work.rows)),
        ("tokens", lambda work: round(work.tokens)),
        ("padding share", lambda work: 1 - work.tokens / work.padded if work.padded else None),
        ("tokens per device and step", lambda work: round(work.tokens / work.batches / devices.number)),
        ("forward passes per step", lambda work: f"{work.passes / work.batches:.2f}"),
        ("batches with gradient caching", lambda work: round(work.cached_batches)),
        ("FLOPs", lambda work: f"{work.flops:.2e}"),
        (f"hours at {devices.teraflops:.3g} TFLOP/s", lambda work: f"{work.hours(devices, shape):.2g}"),
    ]
    cells = [[what, *(number(work) for work in works.values())] for what, number in rows]
    show_table(f"Work, with {devices.number} device(s): {devices.description}", ["", *works], cells)
    title = "Sets in the batches, and how often the run sees each distinct anchor"
    show_table(title, ["set", "side", "batches", "share", "rows", "anchors", "times"], _seen_rows(works))
    for name, work in works.items():
        if name in SIDES:
            warn_of_untried(name, config.side(name), work.batches, shape.parameters)
        if devices.gpu:
            warn_of_small_steps(name, round(work.tokens), work.batches, devices.number)
    if assumptions := list(_assumption_rows(works)):
        title = "Assumptions: pairs, and mean tokens of a row's texts, truncated at the side's limits"
        show_table(title, ["set", "side", "pairs", "anchor", "positive", "negatives", ""], assumptions)
    _show_memory(config, works, shape, devices)


def _show_memory(config: Config, works: dict[str, Work], shape: Shape, devices: Devices) -> None:
    """Print the memory of one device in every training stage."""
    memory = [
        side_memory(config, name, shape, devices.budget(config.training_of(name), shape, config.token_budget).tokens,
                    devices.half, devices.gpu, round(work.largest))
        for name, work in works.items()
    ]  # fmt: skip
    cells = [[part, *(f"{side[part] / GIB:.2f} GiB" for side in memory)] for part in next(iter(memory), {})]
    cells.append(["total", *(f"{sum(side.values()) / GIB:.2f} GiB" for side in memory)])
    left_out = ", without what jointly trained heads hold of a batch" * (config.training.heads.kind == "joint")
    show_table(f"Memory of one device ({shape.parameters:,} parameters){left_out}", ["", *works], cells)


def _seen_rows(works: dict[str, Work]) -> Iterator[list[object]]:
    for side, work in works.items():
        for name, seen in sorted(work.seen.items(), key=lambda item: -item[1].batches):
            share, times = f"{seen.batches / work.batches:.1%}", f"{seen.rows / seen.anchors:.1f}"
            yield [name, side, round(seen.batches), share, round(seen.rows), seen.anchors, times]


def _assumption_rows(works: dict[str, Work]) -> Iterator[list[object]]:
    for name, work in works.items():
        for item in work.assumed:
            lengths = [sum(item.texts[role]) or None for role in ("anchor", "positive", "negatives")]
            shown = [length if length is None else round(length) for length in lengths]
            yield [item.name, name, item.pairs, *shown, "" if item.assumed else "lengths unknown: the limits"]


def show_scoring(config: Config, shape: Shape, devices: Devices) -> None:
    """Print what the models read in each suite, and the hours that it takes on all devices."""
    from evaluation.suites.sizes import suite_size  # with mteb, which takes seconds

    models = len(config.evaluation.chain) + len(config.evaluation.models)
    number, rows = len(config.evaluation.devices) or devices.number, list[list[object]]()
    rate = devices.teraflops * 1e12 * number
    for suite in config.evaluation.suites:
        size = suite_size(suite, config, config.base.max_length)
        if size is None:
            rows.append([suite, None, None, None, "unknown before make data"])
            continue
        flops = models * training_flops(shape, round(size.tokens), size.squares / size.tokens, passes=1)
        unknown = f"without {', '.join(size.unknown)}" if size.unknown else ""
        rows.append([suite, size.texts, round(size.tokens), f"{flops / rate / 3600:.2g}", unknown])
    title = f"Scoring {models} models on {number} device(s): texts and tokens that each model reads"
    show_table(title, ["suite", "texts", "tokens", f"total hours at {devices.teraflops:.3g} TFLOP/s", ""], rows)


main = hydra_application(show)

if __name__ == "__main__":
    main()
