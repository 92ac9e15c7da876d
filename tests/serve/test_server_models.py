"""Every family of models behind the server, from its command line to answers and saves."""

import base64
import json

import browsers
import pytest
from checkpoints import FAMILIES, write_checkpoint, write_ma2mba, write_qwen2_vl, write_smolvlm
from serving import LAST, call, picture, pieces, sound

from jaxmem.data.media.picture import encode_png
from jaxmem.models.base import for_frames
from jaxmem.models.load import load
from jaxmem.models.tiny.embedded import shipped
from jaxmem.serve.wanting import Wanted, make_memory
from jaxmem.session import Session

pytest.importorskip("uvicorn")
WEBSOCKETS = pytest.importorskip("websockets.sync.client")
pytestmark = pytest.mark.slow

WRITERS = {"qwen2_vl": write_qwen2_vl, "smolvlm": write_smolvlm, "ma2mba": write_ma2mba}
SMALL = ("--frame", "56x84")
CASES = {
    "tiny": ("recent", ()),
    "tiny-mamba2": ("recent", ()),
    "tiny-gated-delta": ("recent", ()),
    "tiny-hybrid": ("omnimem", ()),
    "tiny-linear": ("recent", ()),
    "qwen2_vl": ("recent", (*SMALL, "--max-pixels", "3136")),
    "qwen2_5_vl": ("flash_vstream_qwen", SMALL),  # a memory of features
    "qwen3_vl": ("rekv", (*SMALL, "--rekv.space", "device")),  # a memory with a bank
    "qwen3_5": ("recent", SMALL),  # layers with a state
    "qwen2_5_omni": ("omnimem", SMALL),  # hears
    "llava_onevision": ("simple_stream", ()),  # pictures of 360x640, as nothing else is said
    "smolvlm": ("uniform", SMALL),
    "ma2mba": ("recent", SMALL),
}
"""Model -> memory and options of the command line."""
SECONDS = 5


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_served(name, golden, tmp_path):
    """It answers as a `Session` does, by HTTP and WebSocket; it is saved and branched."""
    memory, options = CASES[name]
    tiny = name.startswith("tiny")
    if not tiny:
        pytest.importorskip("tokenizers")
        pytest.importorskip("jinja2")
    folder = tmp_path / "model"
    if name in FAMILIES:
        write_checkpoint(golden, name, folder)
    elif not tiny:
        WRITERS[name](folder)
    where, text = (name, LAST) if tiny else (str(folder), "what is shown now")
    more = {} if tiny else {"dtype": "float32", "max_new": 4, "fps": 1.0}
    if "--max-pixels" in options:
        more["max_pixels"] = int(options[-1])
    model, budget = load(where, **more), "64" if tiny else "256"
    size = model.media.size
    height, width = map(int, options[1].split("x")) if options else (360, 640)
    model = for_frames(model, size if isinstance(size, tuple) else size(height, width))
    set_up = (("space", "device"),) if memory == "rekv" else ()
    session = Session(model, make_memory(model, Wanted(memory, budget, set_up)))
    frames = [picture(i, (60, 80)) for i in range(SECONDS)]
    sounds = [sound(i) for i in range(SECONDS)]
    for piece in pieces(frames, sounds, model.media):
        session.feed(piece)
    expected = session.ask(text).text

    line = ("--model", where, "--memory", memory, "--budget", budget, "--lanes", "2", *options)
    line += () if tiny else ("--dtype", "float32", "--max-new", "4")
    with browsers.serving(*line, "--saves", str(tmp_path / "saves"), cwd=tmp_path) as address:
        made = call(address, "", {"id": "one"})
        assert made["frame"] == list(model.media.size) and made["memory"] == memory
        for i, (frame, samples) in enumerate(zip(frames, sounds, strict=True)):
            image, audio = (
                base64.b64encode(x).decode() for x in (encode_png(frame), samples.tobytes())
            )
            call(address, "/one/frame", {"image": image, "audio": audio, "time": float(i)})
        answer = call(address, "/one/query", {"text": text})
        assert answer["text"] == expected
        layers = call(address, "/one/map")["layers"]
        held = any(len(one.time) for one in session.kept())  # features are on no map
        assert any(one["held"] for one in layers) == held
        assert call(address, "/one/branch", {"id": "two"})["id"] == "two"
        assert call(address, "/two/query", {"text": text})["text"] == expected
        assert call(address, "/one/save", {}) == {"saved": "one"}
        call(address, "/one", method="DELETE")
        call(address, "/two", method="DELETE")
        with WEBSOCKETS.connect(f"ws{address[4:]}/v1/video/chat/stream") as socket:
            socket.send(json.dumps({"type": "session.config", "restore": "one"}))
            socket.send(json.dumps({"type": "video.query", "text": text, "id": "q"}))
            parts = []
            while (message := json.loads(socket.recv(300)))["type"] != "response.text.done":
                assert message["type"] != "error", message
                parts += [message["delta"]] if message["type"] == "response.text.delta" else []
            assert "".join(parts) == message["text"] == expected


def test_every_family_is_there():
    """A new one of `FAMILIES` or of the embedded models gets a row."""
    assert {*FAMILIES, *WRITERS, *shipped()} == set(CASES)
