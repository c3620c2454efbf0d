"""The file of the peers whose keys we know, in the manner of ssh's known_hosts.

    # a comment
    PEER_ID sha256:HEX

A peer may have several lines: any of its keys will do.  Several programs may use one file: each
change is made under a lock, and whoever asks sees what others have changed.  A line that cannot be
read is an error for whoever asks, as it may be the one that keeps a stranger out.
"""

from __future__ import annotations

import os
import re

from ..._errors import UnprovenPeer
from ..._kept_files import Stamp, locked, read_small, stamp_of, write_whole
from ..._peer_id import is_peer_id

__all__ = ["KnownPeers", "is_fingerprint"]

MAX_FILE_BYTES = 1024 * 1024  # our choice: some 10,000 peers
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")

Keys = dict[str, frozenset[str]]


def is_fingerprint(text: str) -> bool:
    return _FINGERPRINT.fullmatch(text) is not None


class KnownPeers:
    """Raises UnprovenPeer where the file cannot be read; a file that is not there knows nobody."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: Stamp | None = None  # the file that ``_keys`` are of
        self._keys: Keys = {}

    def keys(self) -> Keys:
        """All fingerprints by peer id; read again if the file has changed."""
        seen = stamp_of(self.path)
        if seen is None or seen != self._seen:  # None: missing or unreadable, which _read tells
            self._keys = _parse_untrusted(self.path, self._read())
            self._seen = seen
        return self._keys

    def add(self, peer_id: str, fingerprint: str, *, only_first: bool = False) -> None:
        """Know a peer by this key, too; ``only_first``: UnprovenPeer if it has others."""
        try:
            os.makedirs(os.path.dirname(self.path) or ".", mode=0o700, exist_ok=True)
            with locked(self.path):
                text = self._read()
                keys = _parse_untrusted(self.path, text).get(peer_id, frozenset())
                if fingerprint in keys:
                    return
                if only_first and keys:
                    raise UnprovenPeer(f"{peer_id} has just got another key in {self.path}")
                if text and not text.endswith("\n"):
                    text += "\n"
                content = f"{text}{peer_id} {fingerprint}\n".encode()
                if len(content) > MAX_FILE_BYTES:
                    raise UnprovenPeer(f"{self.path} is full: there is no room for {peer_id}")
                write_whole(self.path, content)
        except OSError as error:
            raise UnprovenPeer(f"the known peers: {error}") from error

    def forget(self, peer_id: str) -> bool:
        """Take all keys of a peer out; False: it had none."""
        try:
            with locked(self.path):
                text = self._read()
                if peer_id not in _parse_untrusted(self.path, text):
                    return False
                lines = text.split("\n")
                kept = [line for line in lines if (_entry(line) or "")[:1] != (peer_id,)]
                write_whole(self.path, "\n".join(kept).encode())
        except FileNotFoundError:  # not even a folder
            return False
        except OSError as error:
            raise UnprovenPeer(f"the known peers: {error}") from error
        return True

    def _read(self) -> str:
        try:
            return read_small(self.path, MAX_FILE_BYTES)[0].decode()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise UnprovenPeer(f"the known peers in {self.path}: {error}") from error


def _entry(line: str) -> tuple[str, str] | None:
    """Before a comment is looked for: a peer id may begin with #, too."""
    words = line.split()
    if len(words) == 2 and is_peer_id(words[0]) and is_fingerprint(words[1]):
        return words[0], words[1]
    return None


def _parse_untrusted(path: str, text: str) -> Keys:
    found: dict[str, set[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if (entry := _entry(line)) is not None:
            found.setdefault(entry[0], set()).add(entry[1])
        elif line.strip() and not line.startswith("#"):
            raise UnprovenPeer(f"{path}, line {number}: not a peer id and sha256:HEX")
    return {peer_id: frozenset(keys) for peer_id, keys in found.items()}
