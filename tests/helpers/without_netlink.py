"""``python without_netlink.py ARGUMENTS``: runs ``python ARGUMENTS`` where netlink is forbidden.

As a service of systemd's with ``RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX``, or an app on
Android: a seccomp filter (seccomp(2)) answers ``socket(AF_NETLINK, ...)`` with EAFNOSUPPORT.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

# linux/prctl.h, linux/seccomp.h
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000

# linux/bpf_common.h
LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

# Offsets in struct seccomp_data; the low half of an argument, little-endian.
NUMBER_AT, FAMILY_AT = 0, 16
SOCKET_NUMBERS = {"x86_64": 41, "aarch64": 198}  # of the system call

PROGRAM = [  # code, jump if true, jump if false, operand
    (LOAD_WORD, 0, 0, NUMBER_AT),
    (JUMP_IF_EQUAL, 0, 3, SOCKET_NUMBERS.get(platform.machine(), 0)),
    (LOAD_WORD, 0, 0, FAMILY_AT),
    (JUMP_IF_EQUAL, 0, 1, int(socket.AF_NETLINK)),
    (RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EAFNOSUPPORT),
    (RETURN, 0, 0, SECCOMP_RET_ALLOW),
]


def forbid_netlink() -> None:
    """For this process and all that it starts, for good."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in PROGRAM)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(PROGRAM), ctypes.addressof(instructions))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0),
    ):
        if prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    if platform.machine() not in SOCKET_NUMBERS:
        sys.exit(f"the number of socket() on {platform.machine()} is not known here")
    forbid_netlink()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
