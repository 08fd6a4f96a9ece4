"""A memory as tools of the Model Context Protocol: for an agent that has a model of its own (modelcontextprotocol.io)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from anyio import to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from ..episode import Pair
from ..store.store import MemoryStore

LISTED = 200  # facts that are listed at most, the newest

INSTRUCTIONS = (
    "A memory that lasts across conversations. Tell it what may matter later: a single fact with learn, as a question and a "
    "short answer that name the person or thing; a longer text with remember. Ask it with one whole question at a time. It "
    "says unknown where it is not sure, and may be wrong: facts lists what it was taught."
)


def tools(store: MemoryStore, name: str) -> MCPServer:
    """A server of the Model Context Protocol whose tools use the memory `name` of a store, made where there is none."""
    store.make(name, exist_ok=True)
    offered, server = _Tools(store, name), MCPServer("tmem", instructions=INSTRUCTIONS)
    for tool in (offered.remember, offered.learn, offered.ask, offered.facts, offered.forget):
        server.tool(structured_output=False)(tool)
    return server


class _Tools:
    """The docstrings and parameters of these methods are what an agent reads. What is wrong is told it in a sentence."""

    def __init__(self, store: MemoryStore, name: str):
        self.store, self.name = store, name

    async def remember(self, text: str, source: str = "") -> str:
        """Read a text, write down what matters in it as questions and answers, and learn them. The text itself is not kept for
        later answers. This takes some seconds for each page. source: what the text is called, so that it can be forgotten."""

        def read() -> list[Pair]:
            writes = [*self.store.observe(self.name, text, source=source), *self.store.write(self.name)]
            return [pair for write in writes if write.kept for pair in write.pairs]

        pairs = await _in_thread(read)
        return _listed("Learned", pairs) if pairs else "Nothing of it was written down. Teach its facts with learn."

    async def learn(self, question: str, answer: str, source: str = "") -> str:
        """Learn one fact as a question and its short answer, such as "What is the name of Ada's dog?" and "Biscuit". It
        replaces an earlier answer to the same question. source: what it comes from, so that it can be forgotten with it."""
        write = await _in_thread(lambda: self.store.learn(self.name, [(question, answer)], source=source))
        return _listed("Learned", write.pairs) if write.kept else f"Not learned, the memory is as before: {write.reason}."

    async def ask(self, question: str) -> str:
        """Ask the memory one question; it may be in other words than the fact was taught in. The answer is a few words, or
        "unknown"."""
        return await _in_thread(lambda: self.store.ask(self.name, question))

    async def facts(self) -> str:
        """List what the memory has learned, the newest last, and which text each fact comes from."""
        found = await _in_thread(lambda: self.store.pairs(self.name))
        listed = [f"{f.question} {f.answer}" + (f" [{f.source}]" if f.source else "") for f in found[-LISTED:]]
        newest = f", the newest {LISTED}" if len(listed) < len(found) else ""
        return "\n".join([f"{_count(found)}{newest}:", *listed]) if found else "No facts yet."

    async def forget(self, question: str = "", source: str = "") -> str:
        """Unlearn a fact by its question as facts lists it, or everything that came from a source. Give one of the two."""
        if bool(question) == bool(source):
            raise ToolError("forget: expected a question or a source, one of the two; facts lists both.")
        if source:
            return _listed("Forgot", await _in_thread(lambda: self.store.delete_source(self.name, source)))
        gone = await _in_thread(lambda: self.store.delete_fact(self.name, question))
        now = await _in_thread(lambda: self.store.ask(self.name, question))
        return f"{_listed('Forgot', gone)}\nAsked now, the memory says: {now}"


async def _in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns, while the protocol goes on; what the store refuses is a sentence for the agent."""
    try:
        return await to_thread.run_sync(work)
    except (ValueError, OSError) as error:
        raise ToolError(str(error)) from error


def _count(facts: Sequence[Any]) -> str:
    return f"{len(facts)} fact{'s' * (len(facts) != 1)}"


def _listed(verb: str, pairs: Sequence[Pair]) -> str:
    return "\n".join([f"{verb} {_count(pairs)}:", *(f"{pair.question} {pair.answer}" for pair in pairs)])
