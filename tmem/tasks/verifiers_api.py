"""All that touches the `verifiers` package, an extra: verifiers.v1 of 0.4. Other generations have other classes.

An environment there is a taskset, whose tasks have a prompt, stops and rewards, and an Env, whose `run(task, agents)` leads the
conversation. Both run as they are. `agents` is ours: one seat, whose replies somebody else gives. So no harness, no sandbox and
no model server is started, and tools are called in this process (verifiers_tools.py).
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from .dialogue import SCORE, Ask, Lead, Message
from .verifiers_tools import Tools

MOST = 10_000  # tasks of a taskset that has no end


def library() -> ModuleType:
    """verifiers.v1. Raises ValueError where it is not installed."""
    try:
        import verifiers.v1 as vf
    except ImportError as error:
        raise ValueError(
            "verifiers: its environments need the package verifiers 0.4: pip install 'tmem[verifiers]' (Python 3.11 or later)."
        ) from error
    return vf


class Loaded:
    """An environment with its tasks.

    env    a verifiers.v1.Env with one agent
    tasks  of its taskset, in their order
    keys   one of its own for each task
    """

    def __init__(self, vf: ModuleType, env: Any, tasks: Sequence[Any]):
        self.vf, self.env, self.tasks = vf, env, tasks
        self.keys = [task.key for task in tasks]

    def lead(self, place: int) -> Lead:
        """What leads the conversation on a task."""

        async def lead(ask: Ask) -> list[dict[str, float]]:
            vf, env, task = self.vf, self.env, self.tasks[place]
            episode = vf.Episode(env=vf.EnvInfo(id=env.config.env_id), task=_recorded(vf, task))
            agents = vf.Agents(env.config, partial(Seat, vf, env, ask, episode.traces))
            await env.setup(agents)
            await env.run(task, agents)
            await env.finalize(task, episode)
            return [_scores(trace) for trace in episode.traces if trace.agent.trainable]

        return lead


def load(name: str) -> Loaded:
    """The environment of this name, or of a .py file. Raises ValueError, see tmem.tasks.verifiers_env."""
    vf = library()
    module = _imported(Path(name)) if name.endswith(".py") else name
    try:
        env = vf.load_environment(vf.resolve_env_config({"taskset": {"id": module}}))
        tasks = list(env.taskset if env.taskset.bounded else env.taskset.take(MOST))
        lacking = _lacking(vf, env, tasks)
        loaded = Loaded(vf, env, tasks)
    except Exception as error:  # whatever an environment raises is the environment's
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"verifiers: the environment {name} cannot be loaded: {type(error).__name__}: {why}") from error
    if lacking:
        raise ValueError(f"verifiers: the environment {name} {lacking}, which tmem does not have.")
    if len(set(loaded.keys)) < len(tasks):
        raise ValueError(f"verifiers: the environment {name} has two tasks of one key.")
    return loaded


def _imported(file: Path) -> str:
    """The name under which a file is imported: its stem, as verifiers writes names."""
    name = file.stem.replace("-", "_").lower()
    if not file.is_file():
        raise ValueError(f"verifiers: there is no file {file}; give its path from where you start tmem.")
    known = sys.modules.get(name)
    other = known.__spec__ if known else importlib.util.find_spec(name)
    if other is not None and Path(other.origin or "").resolve() != file.resolve():
        raise ValueError(f"verifiers: a module {name} exists already; call {file} something else.")
    if known is None:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None  # it is a .py file
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"verifiers: {file} cannot be imported: {type(error).__name__}: {error}") from error
    return name


def _lacking(vf: ModuleType, env: Any, tasks: Sequence[Any]) -> str:
    """What an environment needs beside one agent that says text; "": nothing."""
    roles = [name for name, value in env.config if isinstance(value, vf.AgentConfig)]
    if len(roles) != 1:
        return f"has the agents {', '.join(roles)}: it needs {len(roles)} models"
    if type(env).start is not vf.Env.start:
        return "starts resources of its own"
    kind = type(env.taskset).task_type()
    if kind.NEEDS_CONTAINER or any(task.data.image for task in tasks):
        return "needs a container"
    toolsets = [toolset for task in tasks[:1] for kind in _toolsets(env, task) for toolset in kind]
    if any(t.config.url or not isinstance(t.config.runtime, vf.SubprocessConfig) for t in toolsets):
        return "needs tools that run elsewhere"
    needing = [fn.__name__ for t in tasks[:1] for kind in ("reward", "metric") for fn in t.hooks(kind) if _needs_runtime(fn)]
    return f"scores {', '.join(needing)} in a sandbox" if needing else ""


def _toolsets(env: Any, task: Any) -> tuple[list, list]:
    """New toolsets of the taskset, and of a task."""
    return type(env.taskset).toolsets(env.taskset.config), type(task).toolsets(task.config)


def _needs_runtime(function: Any) -> bool:
    parameter = inspect.signature(function).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _recorded(vf: ModuleType, task: Any) -> Any:
    return vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)


def _scores(trace: Any) -> dict[str, float]:
    """The weighted sum of a trace's rewards, which is what verifiers trains for, and by name its rewards and metrics."""
    parts = {**trace.metrics, **{name: reward and reward.score for name, reward in trace.rewards.items()}}
    return {**{f"{SCORE}_{name}": float(v) for name, v in parts.items() if v is not None}, SCORE: float(trace.reward)}


class Seat:
    """The agent of one episode, with what Env.run uses of verifiers.v1.Agent: `run`, `interaction`, `trainable`."""

    def __init__(self, vf: ModuleType, env: Any, ask: Ask, completed: list, name: str, config: Any):
        self.vf, self.env, self.ask, self.completed, self.name, self.config = vf, env, ask, completed, name, config
        self.trainable = True

    async def run(self, task: Any, *, on_trace: Any = None, **borrowed: Any) -> Any:
        """One reply to the task's prompt; its trace, scored."""
        async with self.interaction(task, on_trace=on_trace, **borrowed) as talk:
            await talk.turn()
            talk.trace.stop("agent_completed")
        return talk.trace

    @asynccontextmanager
    async def interaction(self, task: Any, *, on_trace: Any = None, **borrowed: Any) -> AsyncIterator[Talk]:
        """A conversation on a task, turn by turn; it is scored when the context is left."""
        if any(value for value in borrowed.values()):
            raise NotImplementedError(f"tmem has no {', '.join(name for name, value in borrowed.items() if value)} to lend")
        talk = Talk(self, task)
        if on_trace is not None:
            on_trace(talk.trace)
        await talk.open()
        yield talk
        await talk.close()


class Talk:
    """A conversation of a seat, with what Env.run uses of verifiers.v1.Interaction: `turn`, `trace`, `close`."""

    def __init__(self, seat: Seat, task: Any):
        from verifiers.v1.state import state_cls

        vf, self.seat, self.task = seat.vf, seat, task
        self.trace = vf.Trace(
            task=_recorded(vf, task), state=state_cls(type(task))(),
            agent=vf.AgentInfo(config=seat.config, name=seat.name, trainable=seat.trainable),
        )  # fmt: skip
        data = task.data
        prompt = [vf.UserMessage(content=data.prompt)] if isinstance(data.prompt, str) else [*(data.prompt or [])]
        self.messages: list[Any] = [*([vf.SystemMessage(content=data.system_prompt)] if data.system_prompt else []), *prompt]
        self.shown: list[Message] = []  # as the agent said or saw what it was already asked about
        self.tools = Tools(vf)
        self.session = _session(vf, self.trace, task, seat.config)
        self.started = self.over = self.closed = False

    async def open(self) -> None:
        """Set the task and its tools up."""
        await _invoked(self.task.setup, self.trace)
        shared, own = _toolsets(self.seat.env, self.task)
        await self.tools.open([*shared, *own], len(shared), self.task.data, self.trace.state)

    async def turn(self, message: Any = None) -> Any:
        """Send a user turn, text or messages, none where the task's prompt opens; the agent's Segment, to its first reply
        without a tool call."""
        vf, first = self.seat.vf, not self.started
        if self.over or self.closed:
            raise RuntimeError("the exchange is over; read interaction.trace")
        if (message is None) != (first and self.task.data.prompt is not None):
            raise ValueError("a bare turn() takes the first reply to a task's prompt; any other turn brings a message")
        self.started = True
        made: list[Any] = []
        reply = await self._reply([*self.messages, *_typed(vf, message)])
        while reply is not None:
            made.append(reply)
            if not reply.tool_calls or self.session.stopped:
                break
            results = [await self.tools.call(call) for call in reply.tool_calls]
            made += results
            reply = await self._reply([*self.messages, *results])
        self.over = not made
        return vf.Segment(messages=made, terminated=self.over)

    async def _reply(self, messages: Sequence[Any]) -> Any:
        """The agent's message to a conversation, as verifiers' interception server gets it; None where a stop forbids it."""
        from verifiers.v1 import graph

        vf, trace, session = self.seat.vf, self.trace, self.session
        if session.stopped or await session.refused() is not None:
            return None
        tools = self.tools.listed or None
        request, rewrites, stop = await session.rewrite_request(vf.Request(messages=list(messages), tools=tools))
        trace.request_rewrites.extend(rewrites)
        turn = graph.prepare_turn(trace, request.messages, tools)
        self.shown += [Message(m.role, _text(m)) for m in request.messages[len(self.shown) :]]
        told = [Message("system", self.tools.told)] if tools else []
        said = None if stop else await self.seat.ask([*told, *self.shown])
        if said is None:
            turn.commit_prompt()
            trace.stop(stop or "max_turns")
            return None
        message = self.tools.read(said)
        reason = "tool_calls" if message.tool_calls else "stop"
        response = vf.Response(id="", created=0, model="tmem", message=message, finish_reason=reason)
        response, rewrites, stop = await session.rewrite_response(response)
        trace.response_rewrites.extend(rewrites)
        node = turn.commit(response)
        trace.calls.append(vf.ModelCall(node=node, finish_reason=response.finish_reason))
        if stop := stop or await session.gate_tool_calls(node):
            trace.stop(stop)
        self.messages = [*request.messages, response.message]
        self.shown.append(Message("assistant", said if response.message == message else _text(response.message)))
        return response.message

    async def close(self) -> Any:
        """End the exchange and score it; its trace."""
        if not self.closed:
            self.closed = True
            self.trace.stop("user_closed")
            await _invoked(self.task.finalize, self.trace)
            await self.task.score(self.trace, None)
            await self.tools.close()
            self.trace.ok = True
            self.seat.completed.append(self.trace)
        return self.trace


def _session(vf: ModuleType, trace: Any, task: Any, config: Any) -> Any:
    """What applies a task's stops and intercepts, and an agent's limit of turns."""
    from verifiers.v1.session import RolloutLimits, RolloutSession, hook_boundary
    from verifiers.v1.utils.decorators import discover_decorated

    stops = [(hook_boundary(fn, allow_trace=True), fn) for fn in task.hooks("stop")]
    intercepts = [(hook_boundary(fn, allow_trace=False), fn) for fn in discover_decorated(task, "intercept")]

    def of(hooks: list, kind: type) -> list:
        return [fn for boundary, fn in hooks if boundary is kind]

    return RolloutSession(
        ctx=vf.ModelContext(model="tmem", client=vf.EvalClientConfig()), trace=trace,
        limits=RolloutLimits(max_turns=config.max_turns), trace_stops=of(stops, vf.Trace),
        request_stops=of(stops, vf.Request), response_stops=of(stops, vf.Response),
        request_interceptors=of(intercepts, vf.Request), response_interceptors=of(intercepts, vf.Response),
    )  # fmt: skip


async def _invoked(hook: Any, trace: Any) -> None:
    """Call a task's hook, without a sandbox."""
    from verifiers.v1.utils.decorators import invoke

    await invoke(hook, {"trace": trace, "runtime": None})


def _typed(vf: ModuleType, message: Any) -> list:
    """A user turn as messages."""
    from pydantic import TypeAdapter

    if message is None:
        return []
    if isinstance(message, str):
        return [vf.UserMessage(content=message)]
    known = TypeAdapter(vf.Message)
    return [known.validate_python(m) if isinstance(m, dict) else m for m in message]


def _text(message: Any) -> str:
    """A message's text, without its pictures."""
    content = message.content or ""
    return content if isinstance(content, str) else "\n".join(part.text for part in content if part.type == "text")
