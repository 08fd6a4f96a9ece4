"""`tmem mcp` as an agent's host starts it: over standard input and output, one session after another."""

import asyncio
import sys

import pytest

pytest.importorskip("mcp", reason="needs tmem[mcp]")
from mcp.client import Client  # noqa: E402
from mcp.client.stdio import StdioServerParameters, stdio_client  # noqa: E402


def test_two_sessions_of_an_agent_share_a_memory(tmp_path):
    asked = {"question": "How is Petra's cat called?"}
    told = {"question": "What is the name of Petra's cat?", "answer": "Minka"}

    async def session(*calls, errlog=sys.stderr):
        command = StdioServerParameters(command=sys.executable, args=["-m", "tmem", "mcp", "--store", str(tmp_path / "s")])
        async with Client(stdio_client(command, errlog=errlog)) as client:
            return [(await client.call_tool(tool, arguments)).content[0].text for tool, arguments in calls]

    assert asyncio.run(session(("learn", told), ("ask", asked))) == ["Learned 1 fact:\n" + " ".join(told.values()), "Minka"]
    assert asyncio.run(session(("ask", asked))) == ["Minka"]
    with open(tmp_path / "log", "w") as log:  # hosts keep it: what was asked is not in it, nor that somebody has a secret
        (said,) = asyncio.run(session(("forget", {"question": "What is the secret?"}), errlog=log))
    assert "secret" in said and "secret" not in (tmp_path / "log").read_text()


def test_mcp_without_its_package_says_how_to_get_it(tmem, monkeypatch):
    monkeypatch.setitem(sys.modules, "tmem.serve.tools", None)
    found = tmem("mcp", "--store", "OUT")
    assert found.exit_code == 2 and "pip install 'tmem[mcp]'" in found.output
