"""What the model is shown for a request, and what a memory reads of it."""

from __future__ import annotations

from collections.abc import Sequence

from ..agent.agent import Agent
from ..store.history import known
from ..store.kept import Kept
from ..store.store import MemoryStore
from .engine import Steps
from .fields import Refused
from .requests import ChatRequest, CompletionRequest, Message
from .said import Said
from .tenants import Tenant

SOURCE = "chat"  # what text of conversations is called in a memory


def prompt(agent: Agent, request: ChatRequest, said: Said, memory: Kept | None) -> list[int]:
    """Token ids of what is to be answered.

    With a memory, one user turn: what the system says, the text that waits to be learned, and the last message, so that it
    never grows with the conversation. A message that ends with a question mark is asked in the words in which Δ is asked.
    Without: the whole conversation, in the model's own turns. What is `said` then has as many tokens as the request asks for,
    else as have room. Raises Refused where prompt and answer do not fit the model.
    """
    last = request.messages[-1].text
    if memory is not None:
        words = agent.asked(last) if last.rstrip().endswith("?") else last
        parts = [*request.system, *_before(request.messages[-1], memory.waiting), words]
        ids = agent.chat.prompt("\n\n".join(parts))
    else:
        ids = agent.chat.conversation(*_turns(request))
    _room(agent, ids, request.most or 1, "messages")
    said.most = min(said.most, agent.model.config.max_position_embeddings - len(ids))
    return ids


def _turns(request: ChatRequest) -> tuple[list[tuple[str, str]], str]:
    """The conversation as pairs of what was said to the assistant and what it said, and what is said to it now.

    What comes before the assistant's turn is one user turn: the system's words, a tool's result, several messages in a row.
    """
    pairs: list[tuple[str, str]] = []
    told = list(request.system)
    for message in request.messages:
        if message.role == "assistant":
            if told or not pairs:
                pairs.append(("\n\n".join(told), message.text))
            else:
                pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]}\n\n{message.text}")
            told = []
        elif message.role != "system":
            told.append(line(message) if message.role == "tool" else message.text)
    return pairs, "\n\n".join(told)


def _before(last: Message, waiting: Sequence[str]) -> list[str]:
    """The text that waits without the last message, which is there already where it is answered once more."""
    *before, end = waiting or [""]
    end = end.removesuffix(line(last)).rstrip()
    return [*before, *([end] if end else [])]


def continued(agent: Agent, request: CompletionRequest, said: Said) -> list[int]:
    """Token ids of a text to go on with, as it is; `said` then goes on with them. Raises Refused as `prompt` does."""
    ids = agent.chat.completion(request.prompt)
    if not ids:
        raise Refused("prompt: the model's tokenizer makes nothing of it; expected text.", "prompt")
    said.before = ids
    said.most = min(said.most, _room(agent, ids, request.most or 1, "prompt"))
    return ids


def fitting(agent: Agent, text: str, most: int) -> list[int]:
    """Token ids of a user turn. Raises Refused where it does not fit the model."""
    ids = agent.chat.prompt(text)
    _room(agent, ids, most, "messages")
    return ids


def _room(agent: Agent, ids: list[int], most: int, param: str) -> int:
    """How many tokens have room after these. Raises Refused where that is less than `most`."""
    room = agent.model.config.max_position_embeddings
    if len(ids) + most > room:
        raise Refused(
            f"the prompt has {len(ids)} tokens and up to {most} are to come, the model has room for {room}; shorten it.",
            param, code="context_length_exceeded",
        )  # fmt: skip
    return room - len(ids)


def line(message: Message) -> str:
    """A message as text that a memory reads."""
    return f"{message.role}: {message.text}"


def make(store: MemoryStore, tenant: Tenant, name: str, exist_ok: bool = False) -> None:
    """A new memory of a tenant. Raises Refused where it would be one too many, and what MemoryStore.make raises."""
    tenant.room_for(name, store)
    store.make(name, exist_ok=exist_ok)


def catch_up(store: MemoryStore, tenant: Tenant, name: str, request: ChatRequest) -> Steps:
    """Steps that read what is new of a conversation, up to its last message; whether that one is new too, and the writes."""
    make(store, tenant, name, exist_ok=True)
    told = request.told
    count = known([m.digest for m in told], store.messages(name))
    new = told[count:-1]
    writes = []
    if new:
        writes = yield from read(store, name, "\n".join(map(line, new)), SOURCE, [m.digest for m in new])
    while found := store.write_next(name):  # of the last message of before
        writes += found
        yield
    return count < len(told), writes


def read(store: MemoryStore, name: str, text: str, source: str, messages: list[bytes], due: bool = True) -> Steps:
    """Steps that read text, and those that write what is `due` then; the writes."""
    done = []
    if store.waits(name) not in (None, source):
        done += store.write(name)
        yield
    store.take(name, text, source=source, messages=messages)
    while due and (found := store.write_next(name)):
        done += found
        yield
    return done
