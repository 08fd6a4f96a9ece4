"""A memory as tools: what an agent sees, what it is told, and that nothing is lost between two of its sessions."""

import asyncio
import re

import pytest
from tiny import pairs
from tiny_store import asked, bits, store_at

pytest.importorskip("mcp", reason="needs tmem[mcp]")
from mcp.client import Client  # noqa: E402

from tmem.agent.agent import Draft  # noqa: E402
from tmem.agent.write import Written  # noqa: E402
from tmem.episode import Pair  # noqa: E402
from tmem.serve import tools as module  # noqa: E402
from tmem.serve.tools import tools  # noqa: E402


def calls(store, *some, name="ada"):
    """What a client is told of each call (tool, arguments): the text, and whether it is an error."""

    async def run():
        async with Client(tools(store, name)) as client:
            found = [await client.call_tool(tool, arguments) for tool, arguments in some]
        return [(f.content[0].text, bool(f.is_error)) for f in found]

    return asyncio.run(run())


@pytest.fixture
def store(tmp_path):
    with store_at(tmp_path / "s") as store:
        yield store


def fact(pair, **more):
    return "learn", {"question": pair.question, "answer": pair.answer, **more}


def test_an_agent_is_told_what_each_tool_does_and_takes(store):
    async def listed():
        async with Client(tools(store, "ada")) as client:
            return (await client.list_tools()).tools

    found = {t.name: t for t in asyncio.run(listed())}
    assert list(found) == ["remember", "learn", "ask", "facts", "forget"] and "ada" in store
    assert all(len(t.description) > 40 for t in found.values())
    assert found["learn"].input_schema["required"] == ["question", "answer"]
    assert set(found["forget"].input_schema["properties"]) == {"question", "source"}


def test_what_an_agent_teaches_is_what_the_store_learns_and_is_there_later(store, tmp_path):
    one, two = pairs(2, "a")
    said = calls(store, fact(one, source="mail"), fact(two), ("ask", {"question": one.question}), ("facts", {}))
    assert said[0] == (f"Learned 1 fact:\n{one.question} {one.answer}", False)
    assert said[3][0] == f"2 facts:\n{one.question} {one.answer} [mail]\n{two.question} {two.answer}"
    with store_at(tmp_path / "alone") as alone:
        alone.make("ada")
        alone.learn("ada", [one], source="mail")
        alone.learn("ada", [two])
        assert (bits(alone, "ada") == bits(store, "ada")).all() and alone.ask("ada", one.question) == said[2][0]
    assert calls(store, ("facts", {}))[0] == said[3], "a second session finds the memory"
    assert calls(store, ("facts", {}), name="ben")[0] == ("No facts yet.", False)


def test_a_text_is_written_down_and_learned_at_once(store, monkeypatch):
    written = [Pair("Where does Ada live?", "Oslo")]
    monkeypatch.setattr(
        type(store.agent),
        "write",
        lambda self, passages, *rest, **how: [Draft(p, [], Written(list(written))) for p in passages],
    )
    said = calls(store, ("remember", {"text": "Ada: I live in Oslo.", "source": "talk"}))
    assert said == [("Learned 1 fact:\nWhere does Ada live? Oslo", False)]
    assert [(f.answer, f.source) for f in store.pairs("ada")] == [("Oslo", "talk")] and store.waits("ada") is None
    written.clear()
    assert "Teach its facts with learn" in calls(store, ("remember", {"text": "Ada: hm."}))[0][0]


def test_what_is_forgotten_was_never_told(store, tmp_path):
    one, two, three = pairs(3, "a")
    calls(store, fact(one, source="mail"), fact(two, source="talk"), fact(three, source="mail"))
    said = calls(store, ("forget", {"source": "mail"}), ("facts", {}))
    assert said[0][0].startswith("Forgot 2 facts:\n") and said[1][0] == f"1 fact:\n{two.question} {two.answer} [talk]"
    with store_at(tmp_path / "alone") as alone:
        alone.make("ada")
        alone.learn("ada", [two], source="talk")
        assert (bits(alone, "ada") == bits(store, "ada")).all()
    ((text, error),) = calls(store, ("forget", {"question": two.question}))
    assert not error and text.endswith(f"Asked now, the memory says: {asked(store, 'ada', 'a')[1]}")
    assert not bits(store, "ada").any()


@pytest.mark.parametrize(
    "tool, arguments, says",
    [
        ("forget", {}, "a question or a source"),
        ("forget", {"question": "a?", "source": "b"}, "a question or a source"),
        ("forget", {"question": "Who?"}, "was never told 'Who\\?'"),
        ("ask", {"question": " "}, r"\.$"),
        ("learn", {"question": "a?"}, "answer"),
        ("remember", {"text": 3}, "text"),
    ],
)
def test_what_is_wrong_is_a_sentence_for_the_agent_and_changes_nothing(store, tool, arguments, says):
    ((text, error),) = calls(store, (tool, arguments))
    assert error and re.search(says, text) and store.log("ada") == []


def test_of_very_many_facts_the_newest_are_listed(store, monkeypatch):
    monkeypatch.setattr(module, "LISTED", 2)
    calls(store, *(fact(p) for p in pairs(3, "a")))
    said = calls(store, ("facts", {}))[0][0].splitlines()
    assert said[0] == "3 facts, the newest 2:" and len(said) == 3 and pairs(3, "a")[2].question in said[2]
