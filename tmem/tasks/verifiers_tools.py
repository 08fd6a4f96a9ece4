"""Tools of verifiers.v1 toolsets: called in this process instead of over a server, and by a text model in Hermes' format.

<tool_call>
{"name": "calc_add", "arguments": {"a": 1, "b": 2}}
</tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_TOLD = """You may call tools. These are their signatures:
<tools>
{tools}
</tools>
To call one, say its name and its arguments as JSON:
<tool_call>
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>"""


class Tools:
    """The tools of one conversation, with toolsets of their own.

    listed  as verifiers.v1.Tool each
    told    what the agent is told of them; "" where there is none
    """

    def __init__(self, vf: ModuleType):
        self.vf = vf
        self.listed: list[Any] = []
        self.told = ""
        self._at: dict[str, tuple[Any, str]] = {}  # of each name the server and the name that it goes by there
        self._opened: list[Any] = []
        self._calls = 0

    async def open(self, toolsets: Sequence[Any], shared: int, data: Any, state: Any) -> None:
        """Set toolsets up. The first `shared` ones are the taskset's and see no task; state: what all their tools share."""
        from mcp.server.mcpserver import MCPServer

        async def pull() -> Any:
            return state

        async def push(before: bytes) -> None:
            """The state is the conversation's own, so what a tool changed has changed."""

        for number, toolset in enumerate(toolsets):
            self._opened.append(toolset)
            toolset._pull_state, toolset._push_state = pull, push
            await toolset.setup()
            if number >= shared:
                await toolset.setup_task(data)
            server = MCPServer(toolset.server_name or type(toolset).__name__)
            toolset.register(server)
            for tool in await server.list_tools():
                name = f"{toolset.server_name}_{tool.name}" if toolset.server_name else tool.name
                if name in self._at:
                    raise ValueError(f"two tools are called {name}")
                self._at[name] = server, tool.name
                self.listed.append(self.vf.Tool(name=name, description=tool.description or "", parameters=tool.input_schema))
        if self.listed:
            lines = [json.dumps(tool.model_dump(include={"name", "description", "parameters"})) for tool in self.listed]
            self.told = _TOLD.format(tools="\n".join(lines))

    async def close(self) -> None:
        """End what the toolsets have open."""
        for toolset in reversed(self._opened):
            await toolset._exit_stack.aclose()

    def read(self, said: str) -> Any:
        """What was said as an AssistantMessage: its calls, and the text around them. Without tools all is text."""
        bodies = _CALL.findall(said) if self.listed else []
        if not bodies:
            return self.vf.AssistantMessage(content=said)
        calls = []
        for body in bodies:
            self._calls += 1
            name, arguments = _named(body)
            calls.append(self.vf.ToolCall(id=f"call{self._calls}", name=name, arguments=arguments))
        return self.vf.AssistantMessage(content=_CALL.sub("", said).strip() or None, tool_calls=calls)

    async def call(self, call: Any) -> Any:
        """The ToolMessage that answers a call. A call that cannot be understood, or fails, is answered with why."""
        return self.vf.ToolMessage(tool_call_id=call.id, name=call.name, content=await self._result(call) or "(nothing)")

    async def _result(self, call: Any) -> str:
        if call.name not in self._at:
            return f"error: there is no tool {call.name!r}; there are {', '.join(self._at)}"
        arguments = json.loads(call.arguments)
        if not isinstance(arguments, dict):
            return "error: the arguments are no JSON object"
        server, name = self._at[call.name]
        try:
            result = await server.call_tool(name, arguments)
        except Exception as error:  # as over a server: the agent is told, and goes on
            return f"error: {error}"
        return "\n".join(block.text for block in result.content if block.type == "text")


def _named(body: str) -> tuple[str, str]:
    """A call's name, and its arguments as JSON: an object, or a text where they are none. "" where it is no call."""
    found = _parsed(body)
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return "", json.dumps(body.strip())
    arguments = found.get("arguments", {})
    return found["name"], json.dumps(_parsed(arguments) if isinstance(arguments, str) else arguments)


def _parsed(text: str) -> Any:
    """What JSON says; the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
