"""What a request for a completion asks for, read out of its body."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from ..store.history import digest
from .fields import Refused, flag, kind, number, whole

COMMON = {"model", "stream", "stream_options", "stop", "max_tokens", "temperature", "top_p", "seed", "user", "memory"}
READ = {*COMMON, "messages", "max_completion_tokens"}
IGNORED = {"metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "reasoning_effort", "verbosity"}
# Fields that mean something this server does not do; with these values they mean nothing.
NEITHER: dict[str, tuple] = {
    "n": (1,), "top_k": (-1, 0), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
    "repetition_penalty": (1,), "min_p": (0,),
}  # fmt: skip
NEUTRAL: dict[str, tuple] = {
    **NEITHER, "logprobs": (False,), "top_logprobs": (0,), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
}  # fmt: skip
NEUTRAL_TEXT: dict[str, tuple] = {**NEITHER, "echo": (False,), "suffix": ("",), "logprobs": (), "best_of": (1,)}
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
MOST_STOPS, MOST_STOP = 4, 200
HEADER = "X-Memory"


@dataclass(frozen=True)
class Message:
    """One turn: who (system, user, assistant or tool) and what."""

    role: str
    text: str

    @property
    def digest(self) -> bytes:
        return digest(self.role, self.text)


@dataclass(frozen=True)
class Options:
    """What both kinds of completions may ask for.

    memory       None: the model alone
    most         tokens at most; None: what the route says, or has room
    temperature  0: greedy
    top_p        what is sampled is one of the likeliest tokens that have this probability together; 1: of all
    seed         None: another sample every time
    usage        in a stream, too
    """

    memory: str | None
    most: int | None
    temperature: float
    top_p: float
    seed: int | None
    stops: tuple[str, ...]
    stream: bool
    usage: bool


@dataclass(frozen=True)
class ChatRequest(Options):
    """A chat completion as asked for."""

    messages: tuple[Message, ...]

    @property
    def system(self) -> list[str]:
        """What the system says."""
        return [m.text for m in self.messages if m.role == "system"]

    @property
    def told(self) -> list[Message]:
        """What users and tools said, of which a memory learns. What it said itself teaches it nothing."""
        return [m for m in self.messages if m.role in ("user", "tool")]


@dataclass(frozen=True)
class CompletionRequest(Options):
    """A completion of raw text as asked for."""

    prompt: str


def chat_request(body: Mapping[str, Any], header: str | None, model: str) -> ChatRequest:
    """Raises Refused. header: the memory that the request's header names. model: the one that is served."""
    _check(body, READ | IGNORED, NEUTRAL, model)
    most = "max_tokens" if body.get("max_tokens") is not None else "max_completion_tokens"
    return ChatRequest(**_options(body, header, most), messages=_messages(body.get("messages")))


def completion_request(body: Mapping[str, Any], header: str | None, model: str) -> CompletionRequest:
    """As `chat_request`, for raw text."""
    _check(body, {*COMMON, "prompt"}, NEUTRAL_TEXT, model)
    return CompletionRequest(**_options(body, header, "max_tokens"), prompt=_prompt(body.get("prompt")))


def _check(body: Mapping[str, Any], read: Set[str], neutral: Mapping[str, tuple], model: str) -> None:
    """Raises Refused for fields that are not known or not done, and for another model."""
    for name, value in body.items():
        if name in neutral and value is not None and value not in neutral[name]:
            raise Refused(f"{name} is {reprlib.repr(value)}, which this server does not do; leave it out.", name)
        if name not in read and name not in neutral:
            raise Refused(f"unknown field {name!r:.60}; leave it out, or mend its name.", name)
    asked = body.get("model")
    if asked is not None and asked != model:
        raise Refused(
            f"there is no model {asked!r:.80} here; the one that is served is {model!r}.", "model", 404, "model_not_found"
        )


def _options(body: Mapping[str, Any], header: str | None, most: str) -> dict[str, Any]:
    """The fields of Options. most: the name of the field that bounds the answer."""
    nucleus = number(body, "top_p", float, 0, 1)
    streaming = {} if body.get("stream_options") is None else body["stream_options"]
    if not isinstance(streaming, dict):
        raise Refused("stream_options: expected an object.", "stream_options")
    return {
        "memory": _memory(body, header), "most": number(body, most, int, 1, 1 << 20),
        "temperature": number(body, "temperature", float, 0, 2) or 0.0, "top_p": 1.0 if nucleus is None else nucleus,
        "seed": number(body, "seed", int, -(1 << 63), 1 << 63), "stops": _stops(body.get("stop")),
        "stream": flag(body, "stream"), "usage": flag(streaming, "include_usage"),
    }  # fmt: skip


def _prompt(value: Any) -> str:
    """One text, or a list of one."""
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(text, str):
        raise Refused("prompt: expected one text, or a list of one; send others in requests of their own, as text.", "prompt")
    if not text:
        raise Refused("prompt: it is empty; expected text.", "prompt")
    return whole("prompt", text)


def _memory(body: Mapping[str, Any], header: str | None) -> str | None:
    """The memory's name: of the field `memory`, else of the header, else of the field `user`; an empty one is an error."""
    for where, value in (("memory", body.get("memory")), (HEADER, header), ("user", body.get("user"))):
        if value is not None:
            if not isinstance(value, str) or not value.strip():
                raise Refused(f"{where}: expected the name of a memory, got {reprlib.repr(value)}.", where)
            return value
    return None


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise Refused(f"messages: expected a list of at least one message, got {kind(value)}.", "messages")
    found = tuple(_message(i, m) for i, m in enumerate(value))
    if found[-1].role not in ("user", "tool"):
        raise Refused(f"messages: the last one is the {found[-1].role}'s; expected a user's or a tool's.", "messages")
    if not found[-1].text.strip():
        raise Refused("messages: the last one is empty; expected text.", "messages")
    return found


def _message(i: int, value: Any) -> Message:
    where = f"messages[{i}]"
    if not isinstance(value, dict) or value.get("role") not in list(ROLES):
        got = value.get("role") if isinstance(value, dict) else value
        raise Refused(f"{where}: expected an object with a role of {', '.join(ROLES)}, got {reprlib.repr(got)}.", where)
    role, content = ROLES[value["role"]], value.get("content")
    if content is None and role == "assistant":  # a call of tools
        content = ""
    if isinstance(content, list):
        content = "\n".join(_part(where, part) for part in content)
    if not isinstance(content, str):
        raise Refused(f"{where}: content: expected text, got {kind(content)}.", where)
    return Message(role, whole(where, content))


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise Refused(f"{where}: a part of type {reprlib.repr(kind)} is not read; send parts of type 'text'.", where)
    return part["text"]


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(s, str) and 0 < len(s) <= MOST_STOP for s in stops)
    ):
        raise Refused(
            f"stop: expected up to {MOST_STOPS} texts of 1 to {MOST_STOP} characters, got {reprlib.repr(value)}.", "stop"
        )
    return tuple(stops)
