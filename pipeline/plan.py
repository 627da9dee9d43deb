"""`make plan`: what training and evaluation would do and cost, without doing it."""

from configs.schema.config import Config
from pipeline.application import hydra_application
from pipeline.core.console import show_table
from training.estimate import devices_of, shape_of_run, show_estimate, training_operations


def show(config: Config) -> None:
    """Print the work and the cost of what the config's stages name."""
    show_estimate(config)
    if "evaluate" in config.stages:
        show_scoring(config)


def show_scoring(config: Config) -> None:
    """Print what the models read in each suite, and the hours that reading takes on all devices."""
    from evaluation.suites.sizes import suite_size  # with mteb, which takes seconds

    shape = shape_of_run(config)
    models = len(config.evaluation.chain) + len(config.evaluation.models)
    device, rows = devices_of(config), list[list[object]]()
    devices = len(config.evaluation.devices) or device.number
    rate = device.teraflops * 1e12 * devices
    for suite in config.evaluation.suites:
        size = suite_size(suite, config, config.base.max_length)
        if size is None:
            rows.append([suite, None, None, None, "as many as data holds out"])
            continue
        operations = models * training_operations(shape, round(size.tokens), size.squares / size.tokens, passes=1)
        unknown = f"without {', '.join(size.unknown)}" if size.unknown else ""
        rows.append([suite, size.texts, round(size.tokens), f"{operations / rate / 3600:.2g}", unknown])
    title = f"Scoring {models} models with {devices} device(s): texts and tokens that each of them reads"
    show_table(title, ["suite", "texts", "tokens", f"hours in all at {device.teraflops:.3g} TFLOP/s", ""], rows)


main = hydra_application(show)

if __name__ == "__main__":
    main()
