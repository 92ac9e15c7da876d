"""A camera for tests, run by a Python that has GStreamer's RTSP server: ADDRESS/live and more.

    python3 rtsp_server.py PORT FILE.mp4

`/live` shows a test picture with a tone, for ever; `/clip` the file, once; `/mute` pictures alone;
`/locked` asks for the name `user` and the password `secret`.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

SEEN = (
    "videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=10/1 ! "
    "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 pt=96"
)
HEARD = "audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay"
CLIP = (
    'filesrc location="{file}" ! qtdemux name=clip  clip. ! queue ! h264parse ! rtph264pay '
    "name=pay0 pt=96  clip. ! queue ! aacparse ! rtpmp4gpay name=pay1 pt=97"
)
ANYBODY, USER = "anybody", "user"


def factory(line, *, shared=True, locked=False):
    """What makes the media of an address, for those who may see it."""
    made = GstRtspServer.RTSPMediaFactory()
    made.set_launch(f"( {line} )")
    made.set_shared(shared)
    allowed = GstRtspServer.RTSPPermissions()
    for role in (ANYBODY, USER):
        allowed.add_permission_for_role(role, "media.factory.access", True)
        may = not locked or role == USER
        allowed.add_permission_for_role(role, "media.factory.construct", may)
    made.set_permissions(allowed)
    return made


def token(role):
    """What a client is taken for."""
    made = GstRtspServer.RTSPToken()
    made.set_string("media.factory.role", role)
    return made


def main(port, file):
    """Serve until the process is ended."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=port)
    auth, points = GstRtspServer.RTSPAuth(), server.get_mount_points()
    auth.add_basic(auth.make_basic("user", "secret"), token(USER))
    auth.set_default_token(token(ANYBODY))
    server.set_auth(auth)
    points.add_factory("/live", factory(f"{SEEN}  {HEARD} name=pay1 pt=97"))
    points.add_factory("/mute", factory(SEEN))
    points.add_factory("/locked", factory(SEEN, locked=True))
    points.add_factory("/clip", factory(CLIP.format(file=file), shared=False))
    assert server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
