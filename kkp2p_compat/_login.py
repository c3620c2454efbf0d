"""Where an application's cloud is and who logs in there, as its user has said once."""

from __future__ import annotations

from ._api_checks import check_text, check_type
from ._api_outcome import api
from ._codes import KKP2P_SUCCESS
from ._errors import ParameterError
from ._structs import engine_conf_t
from .control.invitation import Invitation, kept, kept_at, login_of_this_user

__all__ = ["kept_account", "set_login"]


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


@api(None)
def kept_account() -> tuple[str, str] | None:
    """The peer id and the secret that ``kkp2p join`` has kept for this user, for join_net.

    None, and -106 by error_no: there are none, as after a line that names a cloud only, or what is
    kept cannot be read.  Not in C.
    """
    try:
        invitation = kept()
    except (OSError, ValueError) as error:
        raise ParameterError(f"{kept_at()}: {error}") from error
    if invitation is None or invitation.peer_id is None or invitation.secret is None:
        raise ParameterError(f"kkp2p join has kept no account in {kept_at()}")
    return invitation.peer_id, invitation.secret
