"""Video through a proxy in mode 1: an RTMP server that knows nothing of peers, and its clients."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from helpers.support import SECRET
from kkp2p_compat.testing.lab import Host, Lab
from kkp2p_compat.testing.plugin import need
from kkp2p_compat.testing.programs import Run, output_of, wait_for
from programs import PORT, SAMPLES, start_cloud

FORWARDER = str(Path(__file__).with_name("forwarder.py"))
SERVER = "rtmp://127.0.0.1:1935/live/stream"  # on the peer's host
PROXY = "rtmp://127.0.0.1:8935/live/stream"  # on the client's
QUIET = ("-nostdin", "-v", "error", "-y")
VIDEO = ("-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=4", "-c:v", "flv")
AUDIO = ("-f", "lavfi", "-i", "sine=frequency=440:duration=4", "-c:a", "aac")


def frames(file: Path) -> dict[str, list[tuple[str, str]]]:
    """For each stream, the size and the hash of every frame."""
    command = ("ffprobe", "-v", "error", "-show_data_hash", "SHA256", "-of", "json")
    entries = ("-show_entries", "stream=codec_name:packet=stream_index,size,data_hash")
    result = subprocess.run([*command, *entries, str(file)], check=True, capture_output=True)
    found: dict[str, Any] = json.loads(result.stdout)
    names = [stream["codec_name"] for stream in found["streams"]]
    streams: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    for packet in found["packets"]:
        streams[names[packet["stream_index"]]].append((packet["size"], packet["data_hash"]))
    return streams


def set_up(lab: Lab, run: Run) -> tuple[Host, Host, subprocess.Popen[str]]:
    """The server's host, the client's with a proxy, and the peer that the proxy leads to."""
    need("ffmpeg", "ffprobe")
    cloud, serving, calling = start_cloud(lab, run), lab.host("server"), lab.host("client")
    login = (cloud.address, PORT, "peer", SECRET)
    peer = run(serving, "joined 0", FORWARDER, *login, "1935")
    program = (str(SAMPLES / "proxy_client.py"), "127.0.0.1", "8935", "peer", "1", "5")
    run(calling, "success", *program, "--login", f"{cloud.address}:{PORT}")
    return serving, calling, peer


def make_video(run: Run, host: Host) -> Path:
    options = (*VIDEO[:4], *AUDIO[:4], *VIDEO[4:], *AUDIO[4:], "sent.flv")
    output_of(run(host, None, *QUIET, *options, program="ffmpeg"))
    return host.folder / "sent.flv"


def check_frames(sent: Path, received: Path) -> None:
    expected = frames(sent)
    assert len(expected["flv1"]) == 4 * 25
    assert len(expected["aac"]) > 4 * 40  # of 1,024 samples each, at 44,100 a second
    assert frames(received) == expected


def test_push(lab: Lab, run: Run) -> None:
    serving, calling, peer = set_up(lab, run)
    sent = make_video(run, calling)
    listen = ("-listen", "1", "-f", "flv", "-i", SERVER, "-c", "copy", "received.flv")
    server = run(serving, None, *QUIET, *listen, program="ffmpeg")
    push = ("-i", sent.name, "-c", "copy", "-f", "flv", PROXY)
    output_of(run(calling, None, *QUIET, *push, program="ffmpeg"))
    output_of(server)
    wait_for(peer, "^mode 1\n")
    check_frames(sent, serving.folder / "received.flv")


def test_pull(lab: Lab, run: Run) -> None:
    serving, calling, peer = set_up(lab, run)
    sent = make_video(run, serving)
    # As live video comes: by its own clock.
    listen = ("-re", "-i", sent.name, "-c", "copy", "-f", "flv", "-listen", "1", SERVER)
    server = run(serving, None, *QUIET, *listen, program="ffmpeg")
    pull = ("-i", PROXY, "-c", "copy", "received.flv")
    output_of(run(calling, None, *QUIET, *pull, program="ffmpeg"))
    output_of(server)
    wait_for(peer, "^mode 1\n")
    check_frames(sent, calling.folder / "received.flv")
