"""Keeps what Hydra composes from a choice of groups: reading and merging files is most of composing a config."""

import dataclasses
import pickle
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig
from omegaconf.basecontainer import BaseContainer

from pipeline.application import CONFIGS


def keep_compositions() -> None:
    """Read each file, and merge those of the same groups, once per process; values are overridden in a fresh copy.

    Files outside configs/, which a test may change, are always read.
    """
    load, list_defaults = ConfigRepository.load_config, config_loader_impl.create_defaults_list
    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    files = dict[str, bytes]()
    lists, trees = dict[str, DefaultsList](), dict[int, bytes]()  # by groups; by the list's id, once it is merged

    def may_change(sources: list[ConfigSource]) -> bool:
        return any(source.scheme() == "file" and source.path != str(CONFIGS) for source in sources)

    def loaded(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        if may_change(self.sources):
            return load(self, config_path)
        if config_path not in files:
            files[config_path] = pickle.dumps(load(self, config_path))
        return pickle.loads(files[config_path])

    def listed(repo: CachingConfigRepository, overrides_list: list[Any], **how: Any) -> DefaultsList:
        if may_change(repo.get_sources()):
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
        BaseContainer._re_parent = lambda _: None  # OmegaConf walks through the whole tree after each file
        try:
            tree = merge(self, defaults, repo)
        finally:
            del BaseContainer._re_parent
        tree._re_parent()
        if id(defaults) in trees:
            trees[id(defaults)] = pickle.dumps(tree)
        return tree

    ConfigRepository.load_config = loaded
    config_loader_impl.create_defaults_list = listed
    ConfigLoaderImpl._compose_config_from_defaults_list = merged
