"""Who we are for our peers, and whom of them we know by their keys.

Runs in the engine's hub.  An engine whose configuration says nothing of keys proves nothing, and
takes the cloud's word for who a peer is, as the C SDK does.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from logging import Logger
from typing import TYPE_CHECKING, Any

import gevent

from ..._errors import EngineClosed, KKP2PError, ParameterError, UnprovenPeer
from ..._io import Signal
from ..._kept_files import data_folder
from ..._sentence import Sentence, said
from ..._structs import engine_conf_t
from ..runtime.thread import native_thread
from ..signalling.known_peers import KnownPeers

if TYPE_CHECKING:
    from ..signalling.identity import Identity

__all__ = ["PLAIN", "POLICIES", "UNPROVEN", "Pins"]

OFF, FIRST_USE, STRICT = POLICIES = ("off", "first-use", "strict")
# Why a peer has not proved its key.
PLAIN = Sentence("a relayed TCP channel proves nothing without encrypt_data")
UNPROVEN = Sentence("whoever takes part in this call does not prove to have it")


class Pins:
    """``identity``: None: we prove nothing.  ``known``: None: we know nobody."""

    def __init__(
        self,
        identity: Identity | None,
        known: KnownPeers | None,
        is_strict: bool,
        log: Logger,
        spawn: Callable[..., gevent.Greenlet[..., Any]],
    ) -> None:
        self.identity = identity
        self.net_id = ""  # as whom we have logged in to the cloud
        self.lan_id = ""  # as whom we are found on the LAN
        self._known = known
        self._is_strict = is_strict
        self._log = log
        self._spawn = spawn

    @classmethod
    def of(
        cls, conf: engine_conf_t, log: Logger, spawn: Callable[..., gevent.Greenlet[..., Any]]
    ) -> Pins:
        """Raises ParameterError."""
        policy = conf.pin or (OFF if conf.known_peers is None else FIRST_USE)
        if policy not in POLICIES:
            raise ParameterError(f"pin is {policy[:100]!r}, not one of {', '.join(POLICIES)}")
        if conf.identity is None and conf.known_peers is None and conf.pin is None:
            return cls(None, None, False, log, spawn)
        # Here, as not every engine needs it.
        from ..signalling.identity import Identity

        folder = data_folder()
        identity = Identity.kept_in(conf.identity or os.path.join(folder, "identity"))
        log.warning("our key: %s", identity.fingerprint)
        if policy == OFF:
            return cls(identity, None, False, log, spawn)
        known = KnownPeers(conf.known_peers or os.path.join(folder, "known_peers"))
        try:
            known.keys()
        except UnprovenPeer as error:
            raise ParameterError(said(error)) from error
        return cls(identity, known, policy == STRICT, log, spawn)

    @property
    def proves(self) -> bool:
        """Whether we show who we are."""
        return self.identity is not None

    @property
    def keeps_keys(self) -> bool:
        """Whether a peer is remembered by its key."""
        return self._known is not None

    def check_unproven(self, peer_id: str, why: str) -> None:
        """Raises UnprovenPeer if that peer has to prove its key, which it does not, and ``why``.

        ``peer_id``: "" for a caller that the cloud does not know.
        """
        name = peer_id or Sentence("the caller")
        if self._known is not None:
            if self._known.keys().get(peer_id):
                raise UnprovenPeer("{peer} is known by its key, and {why}", peer=name, why=why)
            if self._is_strict:
                raise UnprovenPeer("{peer} is not known by a key, and {why}", peer=name, why=why)
        if self.proves:
            self._log.info("%s: taken at its word: %s", name, why)

    def check(self, peer_id: str, fingerprint: str) -> bool:
        """Whether the key of a peer is a known one; raises UnprovenPeer if it must not be another.

        ``peer_id``: "" for a caller that has none, which any known key will do for.
        """
        if self._known is None:
            return False
        known = self._known.keys()
        keys = known.get(peer_id, frozenset())
        if not peer_id:
            keys = frozenset().union(*known.values())
        if fingerprint in keys:
            return True
        if peer_id and keys:
            raise UnprovenPeer(
                "the key of {peer} is {key}, and not the one that is known: {known}; somebody may"
                " be in between.  If the peer has a new key: kkp2p identity forget {word}"
                " --known-peers {path}",
                peer=peer_id,
                key=fingerprint,
                known=", ".join(sorted(keys)),
                word=shlex.quote(peer_id),
                path=shlex.quote(self._known.path),
            )
        if self._is_strict:
            raise UnprovenPeer(
                "{peer} is not in {path}; its key is {key}",
                peer=peer_id or Sentence("the caller"),
                path=self._known.path,
                key=fingerprint,
            )
        return False

    def remember(
        self, peer_id: str, fingerprint: str, done: Callable[[KKP2PError | None], object]
    ) -> None:
        """Know a peer, which is not known yet, by this key; ``done`` gets what went wrong."""
        if self._known is None:
            raise ValueError("there is no file to keep keys in")
        self._spawn(self._remember, self._known, peer_id, fingerprint, done)

    def _remember(
        self,
        known: KnownPeers,
        peer_id: str,
        fingerprint: str,
        done: Callable[[KKP2PError | None], object],
    ) -> None:
        problem: KKP2PError | None = EngineClosed()
        kept = Signal()

        def keep() -> None:  # in a thread of its own: a disk, or another program, may be slow
            nonlocal problem
            try:
                known.add(peer_id, fingerprint, only_first=True)
                problem = None
            except KKP2PError as error:
                problem = error
            finally:
                kept.set()

        try:
            native_thread(keep)
            kept.wait()
        except RuntimeError as error:  # the host's limit
            problem = UnprovenPeer(f"no thread to keep the key of {peer_id}: {error}")
        finally:
            kept.close()
        if problem is None:
            self._log.warning("%s: known by its key from now on: %s", peer_id, fingerprint)
        done(problem)
