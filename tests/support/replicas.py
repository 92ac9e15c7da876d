"""Servers without a model that speak as servers of sessions do, each listening in a thread."""

import asyncio
import json
import threading
from functools import partial
from types import SimpleNamespace

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from waiting import wait_for

from jaxmem.serve.guard import Guard
from jaxmem.serve.running import listening
from jaxmem.serve.table import STOPPING

SESSIONS = "/v1/streaming/sessions"


class Listening:
    """An application that listens in a thread of its own, until it is killed or closed."""

    def __init__(self, app, port=0):
        self.socket = listening("127.0.0.1", port)
        self.port = self.socket.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            app,
            log_level="critical",
            ws="websockets-sansio",
            ws_max_size=400_000,
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.thread.start()
        while not self.server.started:
            threading.Event().wait(0.005)

    async def _serve(self):
        self.loop = asyncio.get_running_loop()
        await self.server.serve([self.socket])

    def kill(self):
        """End as a killed process does: every connection is reset, and nothing is said."""

        def abort():
            for one in self.server.servers:
                one.close()
            for one in list(self.server.server_state.connections):
                one.transport.abort()
            self.server.should_exit = self.server.force_exit = True

        self.loop.call_soon_threadsafe(abort)
        self.thread.join(10)
        self.socket.close()

    def close(self):
        self.server.should_exit = True
        self.thread.join(10)
        self.socket.close()


def refused(code, status):
    return JSONResponse({"error": {"message": f"it is {code}", "code": code}}, status)


class StandIn:
    """Sessions that count frames; `folder` is what all stand-ins share, name -> saved session."""

    def __init__(self, name, folder, *, token=None, room=100, replica=True):
        self.name, self.folder, self.room, self.replica = name, folder, room, replica
        self.sessions, self.status, self.sockets = {}, "ok", {}
        self.gate, self.received, self.heard = threading.Event(), 0, []
        one = f"{SESSIONS}/{{id}}"
        routes = [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", lambda request: JSONResponse({"data": [{"id": "stand-in"}]})),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route(SESSIONS, self.list, methods=["GET"]),
            Route(SESSIONS, self.create, methods=["POST"]),
            Route(one, self.show, methods=["GET"]),
            Route(one, self.end, methods=["DELETE"]),
            Route(f"{one}/{{what}}", self.act, methods=["POST"]),
            WebSocketRoute("/v1/video/chat/stream", self.socket),
        ]
        self.app = Starlette(routes=routes)
        self.app.add_middleware(Guard, token=token, local=True)
        self.listening = Listening(self.app)
        self.address, self.kill, self.close = (
            self.listening.address,
            self.listening.kill,
            self.listening.close,
        )

    def begin(self, id, frames=0):
        if id in self.sessions:
            return None, refused("taken", 409)
        if len(self.sessions) >= self.room:
            return None, refused("full", 503)
        if self.status != "ok":
            return None, refused("stopping", 503)
        self.sessions[id] = SimpleNamespace(id=id, frames=frames)
        return self.plain(id), None

    def plain(self, id):
        frames = self.sessions[id].frames
        return {"id": id, "stream": id, "frames": frames, "state": "open", "server": self.name}

    def save(self, id):
        self.folder[id] = self.sessions[id].frames

    async def health(self, request):
        return JSONResponse({"status": self.status, "sessions": 0, "replica": self.replica})

    async def metrics(self, request):
        text = "# HELP jaxmem_sessions Open.\n# TYPE jaxmem_sessions gauge\n"
        text += f"jaxmem_sessions {len(self.sessions)}\n"
        text += "# HELP jaxmem_answers_total A.\n# TYPE jaxmem_answers_total counter\n"
        text += 'jaxmem_answers_total{cut="false"} 2.0\n'
        return Response(text, media_type="text/plain")

    async def list(self, request):
        sessions = [self.plain(id) for id in self.sessions]
        lasting = None if self.folder is None else list(self.folder)
        return JSONResponse({"sessions": sessions, "saved": [self.name], "lasting": lasting})

    async def create(self, request):
        body = await request.json()
        name = body.get("resume")
        if name is not None and self.folder is None:
            return refused("no_saves", 409)
        if name is not None and name not in self.folder:
            return refused("unknown", 404)
        more = {} if name is None else {"frames": self.folder[name]}
        plain, error = self.begin(name or body["id"], **more)
        return error or JSONResponse(plain | {"sessions": [plain], "failed": []}, 201)

    async def show(self, request):
        id = request.path_params["id"]
        if id not in self.sessions:
            return refused("no_session", 404)
        return JSONResponse(self.plain(id))

    async def end(self, request):
        self.folder.pop(request.path_params["id"], None)
        if self.sessions.pop(request.path_params["id"], None) is None:
            return refused("no_session", 404)
        return Response(status_code=204)

    async def act(self, request):
        id, what = request.path_params["id"], request.path_params["what"]
        if what == "restore":
            plain, error = self.begin((await request.json())["id"])
            return error or JSONResponse(plain | {"of": id}, 201)
        if id not in self.sessions:
            return refused("no_session", 404)
        session = self.sessions[id]
        if what == "upload":
            async for part in request.stream():
                self.received += len(part)
                if self.received > 50_000_000:
                    return refused("too_large", 413)
                while not self.gate.is_set() and self.received > 1_000_000:
                    await asyncio.sleep(0.01)
            return JSONResponse({"bytes": self.received}, 202)
        body = await request.json()
        if what == "frame":
            session.frames += 1
            return JSONResponse({"pieces": session.frames, "seen": body, "server": self.name})
        if what == "save":
            self.save(id)
        if body.get("stream"):
            parts = ({"type": "response.text.delta", "delta": x} for x in "abc")
            return StreamingResponse(self.events(parts), media_type="text/event-stream")
        return JSONResponse({"text": str(session.frames), "server": self.name})

    async def events(self, parts):
        """Two events at once, the rest when the gate is open, with an event in halves between."""
        for i, part in enumerate(parts):
            text = f"data: {json.dumps(part)}\n\n"
            if i == 2:
                yield text[:9]
                while not self.gate.is_set():
                    await asyncio.sleep(0.01)
                text = text[9:]
            yield text

    async def chat(self, request):
        body = await request.json()
        session = request.headers.get("x-streaming-session")
        if session is not None and session not in self.sessions:
            return refused("no_session", 404)
        if body.get("stream"):
            parts = ({"choices": [{"delta": {"content": x}}]} for x in "abc")
            return StreamingResponse(self.events(parts), media_type="text/event-stream")
        return JSONResponse({"choices": [], "server": self.name, "session": session})

    async def socket(self, websocket):
        await websocket.accept()
        first = None
        async for text in websocket.iter_text():
            message = json.loads(text) if text.startswith("{") else {}
            self.heard.append(message)
            kind = message.get("type")
            if kind == "session.config":
                name = message.get("session") or message.get("id")
                if message.get("session") is None:
                    _, error = self.begin(name)
                elif name not in self.sessions:
                    error = refused("no_session", 404)
                else:
                    error = None
                if error is not None:
                    about = json.loads(error.body)["error"]
                    await websocket.send_text(json.dumps({"type": "error", **about}))
                    continue
                first, plain = self.sessions[name], self.plain(name)
                self.sockets[websocket] = name
                made = {"type": "session.created", "session": plain, "sessions": [plain]}
                await websocket.send_text(json.dumps(made))
            elif first is None:
                await websocket.send_text(json.dumps({"type": "error", "code": "order"}))
            elif kind == "video.frame":
                first.frames += 1
            elif kind == "session.save":
                self.save(first.id)
                saved = {"type": "session.saved", "saved": first.id, "session": first.id}
                await websocket.send_text(json.dumps(saved))
            elif kind == "close":
                await websocket.close(message["code"])
            elif kind == "video.query":
                done = {"type": "response.text.done", "text": str(first.frames)}
                more = {"session": first.id, "server": self.name}
                await websocket.send_text(json.dumps(done | more))

    def stop(self):
        """Stop as a server does that a signal ends: sessions are saved, and sockets hear of it."""
        self.status = "stopping"
        for id in self.sessions:
            self.save(id)
        self.sessions.clear()

    def say_ended(self):
        """Tell all sockets that the server stops, and close them."""
        asyncio.run_coroutine_threadsafe(self._say_ended(), self.listening.loop).result(10)

    async def _say_ended(self):
        for websocket, name in self.sockets.items():
            ended = {"type": "session.ended", "why": STOPPING, "session": name}
            await websocket.send_text(json.dumps(ended))
            await websocket.close()


wait = partial(wait_for, seconds=10)
