"""The document's server: answers http to callers with connect_desc 1, and https to those with 2.
文档里的服务端:connect_desc 为 1 应答 http,为 2 应答 https。带分号的注释是 C 的原句。

Run it (a cloud first: `kkp2p account add PEER_ID`, `kkp2p cloud`)  运行(先要有云端和账号):

    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem
    python samples/https_server.py PEER_ID PEER_KEY key.pem cert.pem [--login HOST[:PORT]]
--login: the cloud (default: $KKP2P_LOGIN, that of kkp2p join, 127.0.0.1).  --ca FILE: must
vouch for it.  - - for PEER_ID PEER_KEY: as kkp2p join has kept them 用 kkp2p join 保存的账号。
End it with `kill -USR1`.  The comments with semicolons are the C lines.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import signal
import sys
import time

import gevent
from gevent.event import Event
from OpenSSL import SSL

import kkp2p_compat as kkp2p
from kkp2p_compat import tls

PATIENCE_MS = 10000  # not in the document: for a silent client 文档里没有:不永远等待
exit_flag = Event()  # char run_flag = 1;
g_engine: kkp2p.engine_t
ssl_ctx = SSL.Context(SSL.TLS_METHOD)  # ssl_ctx = SSL_CTX_new(TLS_method());


def send_data(fd: int, buff: bytes, length: int) -> int:
    sended = 0
    while sended < length:
        wl = kkp2p.write(fd, memoryview(buff)[sended:], length - sended, 1000)  # 1 s 1秒超时
        if wl < 0:
            print(
                f"SendData error,fd:{fd},ret:{wl},len:{length},errno:{errno.EPIPE},"
                f"desc:{os.strerror(errno.EPIPE)}."
            )
            return -1
        sended += wl
    return length


def make_answer(powered_by: str) -> tuple[bytes, bytes]:
    body = f"{int(time.time())}\n"  # sprintf(body, "%ld\n", time(NULL));
    head = (
        "HTTP/1.1 200 OK\r\nDate: Tue, 01 Oct 2022 10:10:10 GMT\r\nServer: Apache\r\n"
        f"X-Powered-By: {powered_by}\r\nContent-Type: text/xml; charset=utf-8\r\n"
        f"Content-Length:{len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode(), body.encode()


def process_http(channel: kkp2p.channel_t) -> None:  # a demo 处理http协议,仅作演示用途
    for data in make_answer("kkp2p http"):
        send_data(channel.fd, data, len(data))
    kkp2p.close_fd(channel.fd)
    kkp2p.close_channel(g_engine, channel.channel_id)


def process_https(channel: kkp2p.channel_t) -> None:  # a demo 处理https协议,仅作演示用途
    ssl = tls.Connection(ssl_ctx, channel.fd)  # ssl = SSL_new(ssl_ctx); SSL_set_fd(ssl, fd);
    # For C's OpenSSL; tls.Connection waits by itself. C 的 OpenSSL 需要阻塞模式,这里都可以
    val = fcntl.fcntl(channel.fd, fcntl.F_GETFL, 0)
    fcntl.fcntl(channel.fd, fcntl.F_SETFL, val & ~os.O_NONBLOCK)  # blocking fd设置为阻塞模式
    try:
        ret = ssl.accept(PATIENCE_MS)  # int ret = SSL_accept(ssl); handshake 进行tls握手
        if ret < 0:
            print(f"SSL_accept error,ret:{ssl.get_error(ret)}.")
            print(f"{ssl.error_string()}.")
            return  # goto finish;
        for data in make_answer("kkp2p https"):
            if ssl.write(data) <= 0:  # len = SSL_write(ssl, head, headLen);
                print("SSL_write error.")
                return
    finally:  # finish:
        ssl.shutdown(PATIENCE_MS)  # SSL_shutdown(ssl);
        ssl.free()  # SSL_free(ssl);
        kkp2p.close_fd(channel.fd)
        kkp2p.close_channel(g_engine, channel.channel_id)


def make_conf(arguments: list[str]) -> kkp2p.engine_conf_t:  # where to log in 设置登录端口和域名
    parser = argparse.ArgumentParser()
    parser.add_argument("--login")
    parser.add_argument("--ca")
    options = parser.parse_args(arguments)
    # kkp2p_conf.login_domain = "124.71.217.198"; ...; kkp2p_conf.lan_search_port = 3549; ...
    conf = kkp2p.engine_conf_t(lan_search_port=3549, max_log_size=10 << 20, login_ca=options.ca)
    if kkp2p.set_login(conf, options.login) < 0:
        parser.error("--login is neither HOST[:PORT][#sha256:HEX] nor an invitation")
    return conf


def main(argv: list[str]) -> int:
    global g_engine
    if len(argv) < 5:
        print(f"usage:{argv[0]} peer_id peer_key pirvate_key_file cert_file.")
        return -1
    if argv[1:3] == ["-", "-"]:  # not in the document 文档里没有
        argv[1:3] = kkp2p.kept_account() or sys.exit(f"{kkp2p.error_text()}.")
    on_usr1 = gevent.get_hub().loop.signal(signal.SIGUSR1)  # sigaction(SIGUSR1,&actions,NULL);
    on_usr1.start(exit_flag.set)  # SIGUSR1 ends the program 利用USR1信号退出程序
    try:
        call = "SSL_CTX_use_PrivateKey_file"
        ssl_ctx.use_privatekey_file(argv[3])  # the key file 加载私钥文件
        call = "SSL_CTX_use_certificate_file"
        ssl_ctx.use_certificate_file(argv[4])  # the certificate file 加载证书文件
        call = "SSL_CTX_check_private_key"
        ssl_ctx.check_privatekey()
    except SSL.Error:
        print(f"{call} error.")
        return -1
    engine = kkp2p.engine_init(make_conf(argv[5:]), 5000)
    if engine is None:  # the document does not check this 文档没有检查
        print(f"kkp2p_engine_init error,ret:{kkp2p.error_no()} ({kkp2p.error_text()}).")
        return -1
    g_engine = engine
    kkp2p.switch_log_level(g_engine, 4)
    kkp2p.join_lan(g_engine, argv[1])
    if (ret := kkp2p.join_net(g_engine, argv[1], argv[2])) < 0:  # likewise 同上
        print(f"kkp2p_join_net error,ret:{ret} ({kkp2p.error_text()}).")
        kkp2p.engine_destroy(g_engine)
        return -1
    while not exit_flag.is_set():  # wait for callers 循环侦听是否有连接过来
        channel = kkp2p.channel_t()  # a new one for each greenlet 每次新建,交给 greenlet
        if (ret := kkp2p.accept(g_engine, 500, channel)) < 0:  # C: 1000 500 毫秒,退出更快
            print("kkp2p_accept error,exit")
            break
        if ret == 0:
            continue
        fd, mode = channel.fd, channel.transmit_mode  # 1 p2p, 2 relay 1表示p2p连接,2表示relay连接
        print(f"accept new connection,fd:{fd}, mode is {mode},channel id:{channel.channel_id}.")
        if channel.connect_desc == 1:  # pthread_create(&ThreadId, NULL, process_http, channel);
            gevent.spawn(process_http, channel)  # 1: http, as agreed 1 是http协议,双方自行约定
        elif channel.connect_desc == 2:
            gevent.spawn(process_https, channel)  # 2: https, as agreed 2 是https协议,双方自行约定
        else:
            print(f"unkown protocol,connect desc is :{channel.connect_desc}.")
            kkp2p.close_fd(channel.fd)
            kkp2p.close_channel(g_engine, channel.channel_id)
    kkp2p.engine_destroy(g_engine)
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(sys.argv))
