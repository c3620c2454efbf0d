"""Where an application's cloud is, as its user says it in one line."""

from __future__ import annotations

from ._api_checks import check_text, check_type
from ._api_outcome import api
from ._codes import KKP2P_SUCCESS
from ._errors import ParameterError
from ._structs import engine_conf_t
from .control.invitation import Invitation, login_of_this_user

__all__ = ["set_login"]


@api(...)
def set_login(conf: engine_conf_t, login: str | None) -> int:
    """Fill in login_domain, login_port and login_fingerprint.

    ``login``: ``HOST[:PORT][#sha256:HEX]``, where PORT is 3080 unless it is given and HEX the
    SHA-256 of the cloud's certificate, or an invitation (``kkp2p://...``), as ``kkp2p invite``
    prints it.  None: as the environment's KKP2P_LOGIN says, else what ``kkp2p join`` has kept for
    this user, else 127.0.0.1.  Returns 0, or -106 for anything else.  Not in C.
    """
    check_type(conf, engine_conf_t, "conf")
    try:
        invitation = (
            login_of_this_user() if login is None else Invitation.parse(check_text(login, "login"))
        )
    except (OSError, ValueError) as error:
        raise ParameterError(f"login: {error}") from error
    conf.login_domain, conf.login_port = invitation.host, invitation.port
    conf.login_fingerprint = invitation.fingerprint
    return KKP2P_SUCCESS
