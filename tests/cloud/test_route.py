"""Which track is a peer's."""

from __future__ import annotations

import hashlib
from collections import Counter

from kkp2p_compat.cloud.route import rank


def test_rank_is_rendezvous_hashing() -> None:
    tracks = [(f"track{number}", 3080) for number in range(5)]
    homes = {f"peer{number}": rank(tracks, f"peer{number}")[0] for number in range(500)}
    weights = {
        f"{host}:{port}": hashlib.sha256(f"peer7\0{host}:{port}".encode()).digest()
        for host, port in tracks
    }
    assert "{}:{}".format(*homes["peer7"]) == max(weights, key=lambda track: weights[track])
    assert min(Counter(homes.values()).values()) > 60  # 100 on average
    lost, left = tracks[2], tracks[:2] + tracks[3:]
    moved = {peer for peer, home in homes.items() if rank(left, peer)[0] != home}
    assert moved == {peer for peer, home in homes.items() if home == lost}
