"""What errors and events say: English for everybody, and what it is made of for a translator."""

from __future__ import annotations

import copy
import errno
import json
import os
import socket
import ssl

import pytest

from kkp2p_compat._errors import KKP2PError, LinkLost, PeerOffline, from_os_error
from kkp2p_compat._sentence import Sentence, listed, said


def test_it_is_the_text() -> None:
    sentence = Sentence("{who} waited {seconds:.1f} s", who=Sentence("the caller"), seconds=2)
    assert sentence == "the caller waited 2.0 s"
    assert json.dumps([sentence]) == '["the caller waited 2.0 s"]'
    assert sentence.template == "{who} waited {seconds:.1f} s"
    assert sentence.parts == {"who": "the caller", "seconds": 2}


def test_without_parts_braces_stay() -> None:
    assert Sentence("{as it is") == "{as it is"


def test_a_copy_knows_what_it_is_made_of() -> None:
    copied = copy.deepcopy(Sentence("{one}: {other}", one="a", other=Sentence("b")))
    assert (copied, copied.template, type(copied.parts["other"])) == (
        "a: b",
        "{one}: {other}",
        Sentence,
    )


def test_a_list() -> None:
    assert listed(["a"]) == "a"
    joined = listed([Sentence("a"), Sentence("b"), Sentence("c")])
    assert joined == "a, b, c"
    assert isinstance(joined, Sentence)
    assert joined.parts["other"] == "c"


def test_errors_say_sentences() -> None:
    assert said(PeerOffline()) == "the peer is not online"
    inner = LinkLost("{cloud}: {why}", cloud="cloud", why=said(PeerOffline()))
    outer = KKP2PError("no p2p: {why}", -109, why=said(inner))
    assert (str(outer), outer.code) == ("no p2p: cloud: the peer is not online", -109)
    sentence = said(outer)
    assert isinstance(sentence, Sentence)
    assert isinstance(sentence.parts["why"], Sentence)
    assert said(KKP2PError(said(inner))) is said(inner)


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.ECONNREFUSED, errno.EACCES])
def test_the_system_says_them_by_number(number: int) -> None:
    error = OSError(number, os.strerror(number))
    sentence = said(error)
    assert sentence == str(error)
    assert isinstance(sentence, Sentence)
    assert sentence.template != sentence
    assert str(from_os_error(error, "relay")) == f"relay: {error}"


def test_numbers_that_are_not_the_systems() -> None:
    """EPERM and SSL_ERROR_SSL are both 1, and a resolver's are negative."""
    for error in (
        ssl.SSLError(1, "bad"),
        OSError("no number"),
        ValueError("x"),
        OSError(4000, "y"),
    ):
        sentence = said(error)
        assert isinstance(sentence, Sentence)
        assert sentence.template == sentence == str(error)
    unknown = said(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    assert isinstance(unknown, Sentence)
    assert unknown.template == "no such name is known"
