"""Keeps what Hydra composes from a choice of groups: reading and merging files is most of composing a config."""

import dataclasses
import pickle
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from omegaconf import DictConfig

from pipeline.application import CONFIGS


def keep_compositions() -> None:
    """Read the files of the same groups once per process; overrides of values are applied to a fresh copy.

    Files outside configs/, which a test may change, are always read.
    """
    list_defaults, merge = config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
    lists, trees = dict[str, DefaultsList](), dict[int, bytes]()  # by groups; by the list's id, once it is merged

    def listed(repo: CachingConfigRepository, overrides_list: list[Any], **how: Any) -> DefaultsList:
        if any(source.scheme() == "file" and source.path != str(CONFIGS) for source in repo.get_sources()):
            return list_defaults(repo, overrides_list=overrides_list, **how)
        given = Overrides(repo, overrides_list)
        key = repr((given.override_choices, given.append_group_defaults, given.deletions, how))
        if key not in lists:
            lists[key] = list_defaults(repo, overrides_list=overrides_list, **how)
            trees[id(lists[key].defaults)] = b""
        return dataclasses.replace(lists[key], config_overrides=given.config_overrides)

    def merged(self: ConfigLoaderImpl, defaults: list[Any], repo: CachingConfigRepository) -> DictConfig:
        if kept := trees.get(id(defaults)):
            return pickle.loads(kept)
        tree = merge(self, defaults, repo)
        if id(defaults) in trees:
            trees[id(defaults)] = pickle.dumps(tree)
        return tree

    config_loader_impl.create_defaults_list = listed
    ConfigLoaderImpl._compose_config_from_defaults_list = merged
