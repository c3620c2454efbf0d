"""The document's client: a local port that forwards its connections to a peer.
文档里的客户端:一个本地侦听端口,把连接转发到指定的 peer。

Run it beside samples/https_server.py, then point curl at it  与服务端一起运行,再用 curl 访问:

    python samples/proxy_client.py 127.0.0.1 4433 PEER_ID 0 2 [--login HOST[:PORT]] [--ca FILE]
    curl --insecure -i https://127.0.0.1:4433

connect_mode: 0 p2p, or else relay; 1 p2p only; 2 relay only.  connect_desc: 1 http, 2 https, as
the two programs have agreed.  --login: the cloud (default: $KKP2P_LOGIN, else that of ``kkp2p
join``, else 127.0.0.1:3080).  --ca: its certificate must verify with this one.  A caller needs no
account.  End it with `kill -USR1`.  The comments with semicolons are the C lines.

connect_mode:0 自动(先 p2p,不行则 relay),1 仅 p2p,2 仅 relay。connect_desc:1 http,2 https,
由双方程序约定。--login:云端(默认 $KKP2P_LOGIN,其次是 kkp2p join 保存的,再其次 127.0.0.1)。
--ca:云端的证书必须能用它校验通过。呼叫方不需要账号。用 `kill -USR1` 结束。带分号的注释是 C 的原句。
"""

from __future__ import annotations

import argparse
import ctypes
import re
import signal
import sys

import gevent
from gevent.event import Event

import kkp2p_compat as kkp2p


def atoi(text: str) -> int:
    """C's: the number that the text starts with, else 0.  同 C:开头的数字,没有则为 0。"""
    match = re.match(r"\s*[+-]?\d+", text)
    return int(match[0]) if match else 0


def make_conf(arguments: list[str]) -> kkp2p.engine_conf_t:  # where to log in 初始化登录地址等
    parser = argparse.ArgumentParser()
    parser.add_argument("--login")
    parser.add_argument("--ca")
    options = parser.parse_args(arguments)
    kkp2p_conf = kkp2p.engine_conf_t()  # memset(&kkp2p_conf, 0, sizeof(kkp2p_engine_conf_t));
    # kkp2p_conf.login_domain = "124.71.217.198"; kkp2p_conf.login_port = 3080;
    if kkp2p.set_login(kkp2p_conf, options.login) < 0:
        parser.error("--login is neither HOST[:PORT][#sha256:HEX] nor an invitation")
    kkp2p_conf.lan_search_port = 3549
    kkp2p_conf.max_log_size = 1024 * 1024 * 10
    kkp2p_conf.log_path = None
    kkp2p_conf.login_ca = options.ca
    return kkp2p_conf


def main(argv: list[str]) -> int:
    if len(argv) < 6:
        print(f"usage:{argv[0]} proxy_ip proxy_port peer_id connect_mode connect_desc")
        return -1
    exit_flag = Event()
    on_usr1 = gevent.get_hub().loop.signal(signal.SIGUSR1)  # sigaction(SIGUSR1,&actions,NULL);
    on_usr1.start(exit_flag.set)  # SIGUSR1 ends it 利用USR1信号退出
    g_engine = kkp2p.engine_init(make_conf(argv[6:]), 5000)
    if g_engine is None:  # the document does not check this 文档没有检查
        print(f"kkp2p_engine_init error,ret:{kkp2p.error_no()} ({kkp2p.error_text()}).")
        return -1
    kkp2p.switch_log_level(g_engine, 4)
    ctx = kkp2p.connect_ctx_t()
    ctx.peer_id = argv[3][:32]  # strncpy(ctx.peer_id, argv[3], 32);
    ctx.timeout = 5000
    ctx.channel_type = kkp2p.KKP2P_TCP_CHANNEL  # a TCP channel 创建tcp类型传输通道
    ctx.connect_mode = atoi(argv[4])  # 0 auto, 1 p2p, 2 relay 自动,仅p2p,仅relay
    ctx.connect_desc = atoi(argv[5])  # told to the server 连接描述,会透传到服务端
    proxy_id = ctypes.c_uint32(0)  # uint32_t proxyId = 0;
    ip, port = argv[1], atoi(argv[2])
    # A local proxy to that peer id 启动和peer id进行通信的本地代理服务
    ret = kkp2p.start_proxy(g_engine, ip, port, ctx, proxy_id)  # ..., &ctx, &proxyId);
    if ret < 0:
        print(f"create proxy({ip}:{port}) to peer {argv[3]} error.")
        kkp2p.engine_destroy(g_engine)
        return -1
    _, port = kkp2p.proxy_address(g_engine, proxy_id) or (ip, port)  # port 0 端口 0 时的实际端口
    print(f"create proxy({ip}:{port}) to peer {argv[3]} success.")
    exit_flag.wait()  # while(run_flag) { usleep(100); }
    kkp2p.stop_proxy(g_engine, proxy_id)
    kkp2p.engine_destroy(g_engine)
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(sys.argv))
