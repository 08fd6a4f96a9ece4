"""A judge on this machine, to try the plumbing with: a small model's verdicts are no measure of anything."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tmem.evaluation.judge.judge import MAX_BYTES

__all__ = ["LABEL", "serve"]

LABEL = "local model, plumbing only"


@contextmanager
def serve(answer: Callable[[list[dict[str, str]]], str]) -> Iterator[str]:
    """Serve POST /v1/chat/completions on 127.0.0.1 while the block runs; yields the base address, which ends with /v1.

    answer(messages): the reply to chat messages, called for one request at a time; what it raises is status 500, without
    its text. Requests wait for each other, so ask with `concurrency=1`. Token limits and temperature are the callable's
    own, and no usage is reported. Other paths, bodies above MAX_BYTES and whatever is no chat are refused.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.answer, server.one_at_a_time = answer, threading.Lock()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    timeout = 30  # seconds for a peer that sends nothing

    def do_POST(self) -> None:
        with suppress(ConnectionError):  # whoever asked has gone
            status, content = self._answer()
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _answer(self) -> tuple[int, dict]:
        if self.path != "/v1/chat/completions":
            return 404, _error("there is only /v1/chat/completions")
        # A page in a browser can post to this machine, but not with this type.
        if self.headers.get_content_type() != "application/json":
            return 415, _error("expected Content-Type: application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 10):
            return 411, _error("expected a Content-Length")
        if int(length) > MAX_BYTES:
            return 413, _error(f"expected at most {MAX_BYTES} bytes")
        try:
            messages = json.loads(self.rfile.read(int(length)))["messages"]
            chat = [{"role": str(message["role"]), "content": str(message["content"])} for message in messages]
        except (ValueError, RecursionError, KeyError, TypeError):
            return 400, _error("expected a JSON object with messages, each with role and content")
        with self.server.one_at_a_time:
            try:
                text = self.server.answer(chat)
            except Exception as error:
                return 500, _error(f"the model failed ({type(error).__name__})")
        message = {"role": "assistant", "content": text}
        return 200, {
            "object": "chat.completion",
            "model": LABEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }

    def log_message(self, *args) -> None:
        pass  # the client counts and reports


def _error(message: str) -> dict:
    return {"error": {"message": message}}
