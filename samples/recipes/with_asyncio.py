"""asyncio: a channel is a stream, beside whatever else the event loop does."""

from __future__ import annotations

import asyncio

import kkp2p_compat as kkp2p
from peers import call


async def ask(engine: kkp2p.engine_t, peer_id: str, line: str) -> str:
    sock = await asyncio.to_thread(call, engine, peer_id)  # connect waits: not in the event loop
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        writer.write(f"{line}\n".encode())
        await writer.drain()
        return (await reader.readline()).decode().rstrip("\n")
    finally:
        writer.close()
        await writer.wait_closed()


async def ask_all(engine: kkp2p.engine_t, peer_ids: list[str], line: str) -> list[str]:
    return await asyncio.gather(*(ask(engine, peer_id, line) for peer_id in peer_ids))
