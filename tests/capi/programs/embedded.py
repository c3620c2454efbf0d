"""A program with a Python of its own that uses the C library; its argument is libkkp2p.so."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

TIMEOUT_MS = 20000


class Conf(ctypes.Structure):
    _fields_ = (
        ("login_domain", ctypes.c_char_p),
        ("login_port", ctypes.c_uint16),
        ("lan_search_port", ctypes.c_uint16),
        ("disable_upnp", ctypes.c_char),
        ("log_path", ctypes.c_char_p),
        ("max_log_size", ctypes.c_int),
        ("enable_engine_thread_pool", ctypes.c_char),
    )


kkp2p = ctypes.CDLL(sys.argv[1])
kkp2p.kkp2p_engine_init.restype = ctypes.c_void_p


def make_engine() -> ctypes.c_void_p:
    conf = Conf(b"127.0.0.1", 3080, disable_upnp=1)
    engine = ctypes.c_void_p(kkp2p.kkp2p_engine_init(ctypes.byref(conf), TIMEOUT_MS))
    assert engine, kkp2p.kkp2p_error_no()
    return engine


def accept(engine: ctypes.c_void_p) -> int:
    return int(kkp2p.kkp2p_accept(engine, TIMEOUT_MS, ctypes.create_string_buffer(64)))


def main() -> None:
    engine = make_engine()
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(accept(engine)))
    thread.start()
    try:
        print("waiting", flush=True)
        threading.Event().wait(TIMEOUT_MS / 1000)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    child = os.fork()
    if child == 0:
        assert accept(engine) == -1
        kkp2p.kkp2p_engine_destroy(make_engine())
        os._exit(0)
    print("child", os.waitpid(child, 0)[1])
    kkp2p.kkp2p_engine_destroy(engine)
    thread.join()
    assert results == [-1]
    print("ok")


main()
