"""Key files, whatever is in them; and proofs, of which only the right one is taken."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import kkp2p_compat as kkp2p
from helpers.support import ENVIRONMENT
from kkp2p_compat._errors import ParameterError, UnprovenPeer
from kkp2p_compat.engine.signalling.identity import Identity, verify_untrusted
from kkp2p_compat.engine.signalling.keys import CallKeys
from kkp2p_compat.engine.signalling.offer import (
    parse_direct_answer_untrusted,
    parse_offer_untrusted,
)
from kkp2p_compat.engine.signalling.own_side import OwnSide

SECRET = bytes(range(32))


@pytest.fixture
def ours() -> Identity:
    return Identity(Ed25519PrivateKey.generate())


# The file.


def test_a_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "identity"
    made = Identity.kept_in(str(path))
    assert Identity.kept_in(str(path)).fingerprint == made.fingerprint
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(os.listdir(path.parent)) == ["identity", "identity.lock"]


def test_the_fingerprint_is_what_other_programs_compute(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    made = Identity.kept_in(str(path))
    der = subprocess.run(
        ["openssl", "pkey", "-in", str(path), "-pubout", "-outform", "DER"],
        capture_output=True,
        check=True,
    ).stdout
    ended = subprocess.run(["sha256sum"], input=der, capture_output=True, check=True)
    assert made.fingerprint == f"sha256:{ended.stdout.split()[0].decode()}"


MAKE = """
import sys
from kkp2p_compat.engine.signalling.identity import Identity
sys.stdin.read(1)
print(Identity.kept_in(sys.argv[1]).fingerprint)
"""


def test_programs_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE, str(tmp_path / "identity")]
    with ExitStack() as running:
        programs = [
            running.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=ENVIRONMENT,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("x")
            program.stdin.flush()
        assert len({program.communicate()[0] for program in programs}) == 1


def _pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    how = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


GOOD = _pem(Ed25519PrivateKey.generate())
HOSTILE = {
    "empty": b"",
    "not a key": b"\0\xff" * 100,
    "cut short": GOOD[:60],
    "of another kind": _pem(ec.generate_private_key(ec.SECP256R1())),
    "with a passphrase": _pem(Ed25519PrivateKey.generate(), b"word"),
    "too long": GOOD + b"\n" * 20_000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_key_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ParameterError):
        Identity.kept_in(str(path))
    assert path.read_bytes() == content
    conf = kkp2p.engine_conf_t(log_path=str(tmp_path), identity=str(path))
    assert kkp2p.engine_init(conf, 0) is None
    assert kkp2p.error_no() == -106


def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    path.write_bytes(GOOD)
    path.chmod(0o640)
    with pytest.raises(ParameterError, match="chmod 600"):
        Identity.kept_in(str(path))


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a link in a circle", "under a file"])
def test_a_key_file_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "identity"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link in a circle":
        path.symlink_to(path)
    else:
        path.write_bytes(b"")
        path /= "identity"
    with pytest.raises(ParameterError):
        Identity.kept_in(str(path))


# Proofs.


def test_a_proof_says_who_signed(ours: Identity) -> None:
    for is_caller, own_id in ((True, "alice"), (True, ""), (False, "bob")):
        proof = ours.prove(SECRET, is_caller, own_id, "bob")
        assert verify_untrusted(proof, SECRET, is_caller, "bob") == (ours.fingerprint, own_id)


def test_a_proof_is_of_one_connection_one_side_and_one_id(ours: Identity) -> None:
    proof = ours.prove(SECRET, True, "alice", "bob")
    other = Identity(Ed25519PrivateKey.generate()).prove(SECRET, True, "alice", "bob")
    wrong = [
        (proof, bytes(32), True, "bob"),  # repeated in another connection
        (proof, SECRET, False, "bob"),  # the caller's own, sent back to it
        (proof, SECRET, True, "carol"),  # passed on to another peer
        (proof._replace(peer_id=b"carol".ljust(32, b"\0")), SECRET, True, "bob"),
        (proof._replace(peer_id=bytes(32)), SECRET, True, "bob"),
        (proof._replace(key=other.key), SECRET, True, "bob"),
        (proof._replace(signature=other.signature), SECRET, True, "bob"),
        (proof._replace(signature=bytes(64)), SECRET, True, "bob"),
        (proof._replace(key=bytes([255]) * 32), SECRET, True, "bob"),
        (ours.prove(SECRET, True, "\n", "bob"), SECRET, True, "bob"),
        (ours.prove(SECRET, True, "a\0b", "bob"), SECRET, True, "bob"),
    ]
    for case in wrong:
        with pytest.raises(UnprovenPeer):
            verify_untrusted(*case)


def _keys(caller: OwnSide, callee_proves: bool) -> tuple[CallKeys, CallKeys, OwnSide]:
    text = caller.offer(kkp2p.connect_ctx_t("bob"), 1)
    offer = parse_offer_untrusted(text)
    assert offer.direct is not None
    assert offer.key is not None
    callee = OwnSide([], asked=offer.direct, proves=callee_proves)
    answer = callee.answer()
    public, theirs = parse_direct_answer_untrusted(answer)
    assert theirs.proves == (offer.direct.proves and callee_proves)
    return caller.keys(public, text, answer), callee.keys(offer.key, text, answer), callee


def test_the_two_sides_of_one_call_sign_the_same_and_those_of_others_do_not(ours: Identity) -> None:
    callers, callees, _ = _keys(OwnSide([], proves=True), True)
    assert callers.proof == callees.proof
    others, _, _ = _keys(OwnSide([], proves=True), True)
    proof = ours.prove(callers.proof, True, "alice", "bob")
    assert verify_untrusted(proof, callees.proof, True, "bob").peer_id == "alice"
    with pytest.raises(UnprovenPeer):
        verify_untrusted(proof, others.proof, True, "bob")


def test_who_passes_the_keys_of_two_peers_on_has_two_secrets() -> None:
    """A cloud in the middle answers one side and calls the other, with keys of its own."""
    of_alice, to_alice, _ = _keys(OwnSide([], proves=True), True)
    to_bob, of_bob, _ = _keys(OwnSide([], proves=True), True)
    assert of_alice.proof == to_alice.proof != to_bob.proof == of_bob.proof


def test_both_sides_prove_or_none() -> None:
    for callers, callees in ((True, False), (False, True), (False, False)):
        _, _, callee = _keys(OwnSide([], proves=callers), callees)
        assert not callee.direct.proves
    _, _, callee = _keys(OwnSide([], proves=True), True)
    assert callee.direct.proves


@pytest.mark.parametrize(
    ("told", "proves"), [(1, True), (2, True), (0, False), (True, False), ("1", False)]
)
def test_which_versions_of_proofs_are_understood(told: object, proves: bool) -> None:
    answer = json.loads(OwnSide([], proves=True).answer())
    answer["direct"]["proof"] = told
    _, theirs = parse_direct_answer_untrusted(json.dumps(answer))
    assert theirs.proves == proves
