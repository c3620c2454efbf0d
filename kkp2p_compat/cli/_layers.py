"""Options from a TOML file and from the environment, under the names that they have as flags.

The command line comes first, then the environment, then the file, then the default.  A value is
given to the same parser wherever it comes from, so the same is allowed and the same complained of.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._toml import read_toml
from ._words import _

__all__ = ["Layers", "WrongOption"]

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
_GROUP = "limits"  # the one table that a file may have: its keys are options as all others


class WrongOption(ValueError):
    """an option is wrong, or its file cannot be read"""


class Layers:
    """``parser`` has an option ``--config``; ``arguments`` were given to it on the command line.

    ``prefix``: of the names in the environment, as "KKP2P_CLOUD_".
    """

    def __init__(
        self,
        parser: argparse.ArgumentParser,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        prefix: str,
    ) -> None:
        self._parser = parser
        self._defaults = vars(parser.parse_args([]))
        self._names = [name for name in self._defaults if name not in ("config", "run")]
        parser.set_defaults(**dict.fromkeys(self._names))  # None: it was not given
        parser.exit_on_error = False
        given = vars(parser.parse_args(arguments))
        self._given = {name: given[name] for name in self._names if given[name] is not None}
        self._environment = {
            name: environment[key]
            for name in self._names
            if (key := prefix + name.upper()) in environment
        }
        self._prefix = prefix
        file = given["config"] or environment.get(f"{prefix}CONFIG")
        self.file = Path(file) if file else None
        known = {prefix + name.upper() for name in (*self._names, "config")}
        # Variables of such names may be others': a container's for its services, for example.
        self.unknown = [key for key in environment if key.startswith(prefix) and key not in known]

    def read(self) -> Namespace:
        """All options, as they are now; raises WrongOption."""
        in_file = {} if self.file is None else self._read_file(self.file)
        in_environment = {
            name: self._parse(self._prefix + name.upper(), name, self._from_text(name, text))
            for name, text in self._environment.items()
        }
        return Namespace(**{**self._defaults, **in_file, **in_environment, **self._given})

    def _read_file(self, file: Path) -> dict[str, Any]:
        try:
            table = read_toml(str(file))
        except (OSError, ValueError) as error:
            raise WrongOption(f"{file}: {error}") from error
        group = table.pop(_GROUP, {})
        if not isinstance(group, dict):
            raise WrongOption(_("{file}: {group} is not a table").format(file=file, group=_GROUP))
        found: dict[str, Any] = {}
        for key, value in (*table.items(), *group.items()):
            name = key.replace("-", "_")
            if name not in self._names:
                raise WrongOption(
                    _("{file}: there is no option {key!r}").format(file=file, key=key)
                )
            if name in found:
                raise WrongOption(_("{file}: {key} is there twice").format(file=file, key=key))
            found[name] = self._parse(f"{file}: {key}", name, value)
        return found

    def _from_text(self, name: str, text: str) -> object:
        """A variable's value as it would stand in a file; several are separated by spaces."""
        default = self._defaults[name]
        if isinstance(default, list):
            return text.split()
        if isinstance(default, bool) and text.lower() in (*_YES, *_NO):
            return text.lower() in _YES
        return text

    def _parse(self, where: str, name: str, value: object) -> Any:
        """``value`` as the parser makes it of an argument."""
        default = self._defaults[name]
        if isinstance(default, bool):
            if not isinstance(value, bool):
                text = _("{where}: {value!r} is not true or false")
                raise WrongOption(text.format(where=where, value=value))
            return value
        values = value if isinstance(default, list) and isinstance(value, list) else [value]
        if not all(type(each) in (str, int, float) for each in values):
            text = _("{where}: {value!r} is not a text or a number")
            raise WrongOption(text.format(where=where, value=value))
        flag = f"--{name.replace('_', '-')}"
        try:
            parsed, __ = self._parser.parse_known_args([f"{flag}={each}" for each in values])
        except argparse.ArgumentError as error:
            raise WrongOption(f"{where}: {error.message}") from error
        found = getattr(parsed, name)
        return default if found is None else found  # an empty list
