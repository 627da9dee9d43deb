"""Which models are merged: this run's stages, and folders given by path or pattern."""

from pathlib import Path

import pytest

from merging.models import merged_models, merged_states
from pipeline.application import composed
from pipeline.core.errors import UserError


def models(folder: Path, *names: str) -> dict[str, Path]:
    return merged_models(composed("profile=tiny", f"runs={folder}", f"merging.models=[{','.join(names)}]"))


def model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_stages_are_this_run_s_and_a_pattern_names_any_number_of_other_runs_models(tmp_path: Path) -> None:
    seeds = [model(tmp_path / f"seed{number}" / "merge" / "model") for number in (1, 2, 3)]
    found = models(tmp_path, "init", f"{tmp_path}/seed*/merge/model")
    assert found == {
        "init": tmp_path / "tiny" / "init",
        **{f"seed{number}-merge": folder for number, folder in zip((1, 2, 3), seeds, strict=True)},
    }


def test_a_run_whose_name_is_like_a_pattern_is_merged_by_its_path(tmp_path: Path) -> None:
    folder = model(tmp_path / "tiny-dimensions=[16,8]" / "symmetric" / "model")  # as a sweep over lists names its runs
    config = composed("profile=tiny", f"runs={tmp_path}")
    config.merging.models = ["init", str(folder)]
    assert merged_models(config)["tiny-dimensions=[16,8]-symmetric"] == folder


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["init", "{}/nothing/model"], r"no such model folder .*nothing/model"),
        (["{}/one*/merge/model"], r"at least two models, not 1"),
        (["{}/one/merge/model", "{}/other/one/merge/model"], r"two merged models are called one-merge"),
    ],
)
def test_what_can_t_be_merged_is_named(names: list[str], words: str, tmp_path: Path) -> None:
    model(tmp_path / "one" / "merge" / "model")
    model(tmp_path / "other" / "one" / "merge" / "model")
    with pytest.raises(UserError, match=words):
        models(tmp_path, *(name.format(tmp_path) for name in names))


def test_one_weight_is_not_shared_out_over_the_models_of_a_pattern(tmp_path: Path) -> None:
    for run in ("one", "other"):
        model(tmp_path / run / "merge" / "model")
    pattern = f"{tmp_path}/*/merge/model"
    config = composed("profile=tiny", f"merging.models=[init,{pattern}]")
    config.merging.weights = {"init": 0.5, pattern: 0.5}
    with pytest.raises(UserError, match=r"one weight is given for 2 models") as caught:
        merged_states(config)  # asked before anything is made
    assert pattern in caught.value.line and "\n" not in caught.value.line


def test_the_merge_is_made_again_where_another_run_s_model_has_changed(tmp_path: Path) -> None:
    folder = model(tmp_path / "one" / "merge" / "model")
    config = composed("profile=tiny", f"runs={tmp_path}", f"merging.models=[init,{folder}]")
    before = merged_states(config)
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert before.keys() == merged_states(config).keys() == {"model:one-merge"} and before != merged_states(config)
