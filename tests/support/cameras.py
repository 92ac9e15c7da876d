"""A camera on the network: GStreamer's RTSP server as a process that can break off and come back.

Debian: python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-base, -good, -bad and -ugly.
"""

import shutil
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("rtsp_server.py")
FOUND = 'import gi; gi.require_version("GstRtspServer", "1.0")'


@cache
def interpreter() -> str | None:
    """A Python that has GStreamer's RTSP server; None: there is none."""
    for one in ("/usr/bin/python3", shutil.which("python3"), sys.executable):
        if one and subprocess.run([one, "-c", FOUND], capture_output=True).returncode == 0:
            return one
    return None


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Camera:
    """An RTSP server at `address`, which ends with a slash; see `rtsp_server.py` for its paths."""

    def __init__(self, file=""):
        """Start one; `file` is what `/clip` shows."""
        if interpreter() is None:
            pytest.skip("no Python here has GStreamer's RTSP server (gi.repository.GstRtspServer)")
        self.port, self.file = free_port(), file
        self.address = f"rtsp://127.0.0.1:{self.port}/"
        self.start()

    def start(self):
        """Listen again, as after a loss of power."""
        line = [interpreter(), str(SCRIPT), str(self.port), str(self.file)]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def kill(self):
        """Lose power."""
        self.process.kill()
        self.process.communicate()

    def freeze(self):
        """Keep the connection, and send nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        """Send again."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()
