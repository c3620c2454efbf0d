"""What a running cloud takes over from its files: on SIGHUP, and soon after they have changed."""

from __future__ import annotations

import dataclasses
import logging
from argparse import Namespace
from collections.abc import Iterable

import gevent

from ..cloud.changed_files import ChangedFiles
from ..cloud.server import Cloud
from ..cloud.settings import Limits
from ._layers import Layers, WrongOption

__all__ = ["Reloader", "limits_of"]

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # our choice
_AT_START_ONLY = ("turn_s",)  # of the limits
_AT_ONCE = ("config", "log_level", "run")


def limits_of(options: Namespace) -> Limits:
    return Limits(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Limits)})


class Reloader:
    """``options``: those with which the cloud was started."""

    def __init__(self, cloud: Cloud, layers: Layers, options: Namespace) -> None:
        self._cloud = cloud
        self._layers = layers
        self._options = options
        self._files = ChangedFiles([] if layers.file is None else [layers.file])
        self._watching = gevent.spawn(self._watch)

    def stop(self) -> None:
        self._watching.kill()

    def reload(self) -> None:
        """Certificate, limits and log level; nobody is dropped.  What is wrong changes nothing."""
        self._cloud.reload()
        self._read()

    def _watch(self) -> None:
        while True:
            gevent.sleep(LOOK_EVERY_S)
            if self._files.look():
                self._read()

    def _read(self) -> None:
        self._files.forget()
        try:
            new = self._layers.read()
        except WrongOption as error:
            log.error("the options stay as they are: %s", error)
            return
        before = vars(self._options)
        changed = [name for name, value in vars(new).items() if value != before[name]]
        if not changed:
            return
        limits = limits_of(new)
        self._cloud.gate.change_limits(limits)
        logging.getLogger().setLevel(new.log_level.upper())
        named = {field.name for field in dataclasses.fields(Limits)}.difference(_AT_START_ONLY)
        late = [name for name in changed if name not in named and name not in _AT_ONCE]
        log.warning("options have changed: %s", _in_words(set(changed).difference(late)) or "none")
        if late:
            log.warning("these take effect when the cloud is started again: %s", _in_words(late))
        self._options = Namespace(**{**vars(new), **{name: before[name] for name in late}})


def _in_words(names: Iterable[str]) -> str:
    return ", ".join(sorted(name.replace("_", "-") for name in names))
