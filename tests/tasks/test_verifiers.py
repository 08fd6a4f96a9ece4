"""verifiers: which task comes when and what is refused, on a fake of what loads environments; and the package's own classes."""

import dataclasses
import json
import random
import signal
import sys
from pathlib import Path

import forked
import pytest
import tiny_run
import torch
from tiny_agent import TRAIN
from tiny_dialogue import Guesses, Guessing
from tiny_run import lines, start, weights

from tmem.rl.tasks import task_of
from tmem.tasks import verifiers_api
from tmem.tasks.searches import SPLITS, side
from tmem.tasks.verifiers_env import Verifiers

EXAMPLE = Path(__file__).parents[2] / "examples" / "guess_number.py"


def words(text, count):
    return text if len(text.split()) <= count else " ".join(text.split()[:count])


def played(scene, *replies):
    """(seen, how the call went) of every turn."""
    out, replies = [], iter(replies)
    while (seen := scene.observe()) is not None:
        out.append((seen.text, scene.act(next(replies, "x")).called))
    return out


# without the package -----------------------------------------------------------------------------------------------------


@pytest.fixture
def guesses(monkeypatch):
    monkeypatch.setattr(verifiers_api, "load", lambda name: Guesses())


def test_tasks_are_held_out_by_their_keys_and_none_comes_twice_in_an_epoch(guesses):
    env = Verifiers("guesses", turns=3, max_new=5, step=2)
    env.require(*SPLITS)
    sides = {split: [Guesses.keys[i] for i in env.held[split]] for split in SPLITS}
    assert all(side(key) == split for split, keys in sides.items() for key in keys) and env.trained == sides["train"]
    asked = []
    for key in (f"0/rl/{step}/{i}" for step in range(3) for i in range(2)):
        episode = env.episode(key, "train")
        seen = episode.begin(words).observe()
        assert episode.id == f"verifiers/train/{key}" and seen.max_new == 5 and not episode.chunks and not episode.questions
        assert env.episode(key, "train").begin(words).observe() == seen
        asked.append(seen.text)
    assert len(set(asked)) == 6 and {text.split()[1] for text in asked} <= {str(int(key, 16)) for key in sides["train"]}


def test_rollouts_of_an_episode_that_say_the_same_see_the_same(guesses):
    """Whatever else draws random numbers: so a run that was killed resumes to the same bits."""
    begin = Verifiers("guesses", turns=3).episode("7", "train").begin
    one = played(begin(words))
    random.random()
    assert played(begin(words)) == one and len(one) == 3


def test_an_environment_that_cannot_be_is_one_sentence(guesses, monkeypatch):
    with pytest.raises(ValueError, match="verifiers: no environment; name one with --environment NAME"):
        Verifiers("")
    monkeypatch.setattr(Guesses, "keys", ["1"])
    with pytest.raises(ValueError, match="none of the 1 tasks of guesses falls to .*, which takes .0 % of them"):
        Verifiers("guesses").require(*SPLITS)


def test_settings_that_mean_nothing_are_one_sentence(guesses):
    wanted = {"task": "verifiers", "environment": "guesses", "reward": "score", "turns": 5, "turn_tokens": 9}
    found = task_of(dataclasses.replace(TRAIN, **wanted))
    assert isinstance(found, Verifiers) and (found.name, found.turns, found.max_new) == ("guesses", 5, 9)
    with pytest.raises(ValueError, match="environment: task 'stream' has none"):
        dataclasses.replace(TRAIN, environment="guesses")
    with pytest.raises(ValueError, match="reward: expected score, the sum of an environment's rewards, got 'f1'"):
        dataclasses.replace(TRAIN, **wanted | {"reward": "f1"})
    for other in ({"rl_credit": "action"}, {"rl_answers": "logp"}):
        with pytest.raises(ValueError, match="an environment with scenes is trained with rl_credit"):
            task_of(dataclasses.replace(TRAIN, **wanted, **other))


@pytest.mark.parametrize("library", ["verifiers", "verifiers.v1"])
def test_without_the_package_or_with_an_older_one_a_sentence_says_what_to_install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=r"need the package verifiers 0\.4: pip install 'tmem\[verifiers\]'"):
        verifiers_api.load("any")


@pytest.fixture(scope="module")
def one_thread():
    """As the processes that the tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_run_of_conversations_resumes_to_the_same_bits(tmp_path, one_thread):
    """Killed between the optimizer's step and the model's: all of RL's rollouts of that step are taken again."""
    whole, out = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    died = forked.run(tiny_run.__file__, out, "--talk", "--kill", "update", 2)
    assert died.returncode == -signal.SIGKILL, died.stderr
    started = start(whole, **tiny_run.TALKED)
    started.run()
    start(out, resume=True, **tiny_run.TALKED).run()
    for name in ("metrics", "segments"):
        assert (out / f"{name}.jsonl").read_text() == (whole / f"{name}.jsonl").read_text()
    mine, theirs = weights(out), weights(whole)
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    rows = [r for r in lines(whole) if r["phase"] == "rl"]
    assert len(rows) == 2 and all(r["turns"] > 1 and r["calls"] == r["turns"] and r["failed"] == 0 for r in rows)
    assert any(r["grad_norm"] > 0 for r in rows) and all(0 < r["dlogp_worst_segment"] < 1e-4 for r in rows)
    assert json.loads((whole / "trained.json").read_text()) == started.task.trained == Guessing().trained


def test_where_there_is_nothing_to_teach_the_supervised_phases_end_at_once(tmp_path, one_thread):
    warned = []
    trainer = start(tmp_path / "run", **tiny_run.TALKED | {"warm_steps": 3, "rl_steps": 1, "control_steps": 0})
    trainer.run(tiny_run.trainer.Progress(lambda row: None, lambda *_: None, warned.append))
    assert [w.split(",")[0] for w in warned] == ["warm: there is nothing to teach", "sft: there is nothing to teach"]
    assert not [r for r in lines(tmp_path / "run") if r["phase"] in ("warm", "sft")]


# with the package --------------------------------------------------------------------------------------------------------


@pytest.fixture
def vf():
    return pytest.importorskip("verifiers.v1")


ONE_TURN = """
import verifiers.v1 as vf
__all__ = ["Sums"]

class Data(vf.TaskData):
    answer: str

class Sum(vf.Task[Data]):
    @vf.reward(weight=2.0)
    async def right(self, trace):
        return float(trace.last_reply == self.data.answer)

    @vf.metric
    async def length(self, trace):
        return {"letters": len(trace.last_reply)}

class Sums(vf.Taskset[Sum]):
    def load(self):
        return [Sum(Data(prompt=f"{i} + {i} = ?", system_prompt="Only the sum.", answer=str(2 * i)), self.config.task)
                for i in range(30)]
"""


@pytest.fixture
def environment(vf, tmp_path, monkeypatch):
    """Makes an environment of a module's text, each under a name of its own."""
    made = []

    def make(text, **options):
        made.append(f"made_{abs(hash(tmp_path))}_{len(made)}")
        file = tmp_path / f"{made[-1]}.py"
        file.write_text(text)
        return Verifiers(str(file), **options)

    yield make
    for name in made:
        sys.modules.pop(name, None)


def lead(env, number=0):
    """The scene of one of all tasks."""
    return env._scene(number, "s", words)


def test_a_plain_taskset_is_one_reply_and_its_weighted_rewards(environment):
    env = environment(ONE_TURN)
    scene = lead(env, 4)
    assert played(scene, " 8 ") == [("Only the sum.\n4 + 4 = ?", "fine")]
    assert scene.scores() == [{"score_letters": 1.0, "score_right": 1.0, "score": 2.0}]
    wrong = lead(env, 4)
    assert played(wrong, "9") and wrong.scores()[0]["score"] == 0.0


def test_the_example_is_played_turn_by_turn_until_the_number_is_found(vf):
    env = Verifiers(str(EXAMPLE), turns=4)
    env.require(*SPLITS)
    assert env.files == [str(EXAMPLE)] and len(env.loaded.tasks) == 60 and env.loaded.tasks[20].data.number == 7
    scene = lead(env, 20)
    found = played(scene, "20?", "I do not know", "maybe 3", "7!")
    assert [how for _, how in found] == ["fine"] * 4
    hints = [text.split("\n")[-1] for text, _ in found[1:]]
    assert hints == ["User: It is lower.", "User: Say a number.", "User: It is higher."]
    assert scene.scores() == [{"score_guesses": 4.0, "score_found": 1.0, "score_near": 1.0, "score": 1.2}]
    late = lead(env, 20)
    assert len(played(late, "1", "2", "3", "4", "7")) == 4
    assert late.scores() == [{"score_guesses": 4.0, "score_found": 0.0, "score_near": 0.85, "score": pytest.approx(0.17)}]


STOPS = ONE_TURN.replace(
    "class Sums",
    """    @vf.stop
    async def enough(self, trace: vf.Trace) -> bool:
        return trace.num_turns >= 2

    @vf.stop
    async def given_up(self, response: vf.Response) -> bool:
        return "give up" in response.message.content

class Config(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()

class Talk(vf.Env[Config]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as talk:
            segment = await talk.turn()
            while not segment.terminated:
                segment = await talk.turn([{"role": "user", "content": "Sure?"}])

    async def finalize(self, task, episode):
        (trace,) = episode.traces
        trace.record_metric("stopped", trace.stop_condition == "given_up")

class Sums""",
).replace('["Sums"]', '["Sums", "Talk"]')


def test_stops_end_an_exchange_and_what_the_environment_records_at_its_end_counts(environment):
    env = environment(STOPS)
    scene = lead(env, 4)
    assert [text.split("\n")[-1] for text, _ in played(scene, "7", "8", "9")] == ["4 + 4 = ?", "User: Sure?"]
    assert scene.scores() == [{"score_letters": 1.0, "score_stopped": 0.0, "score_right": 1.0, "score": 2.0}]
    scene = lead(env, 4)
    assert len(played(scene, "I give up", "8")) == 1 and scene.scores()[0]["score_stopped"] == 1.0


BEST = ONE_TURN.replace(
    "class Sums",
    """class Config(vf.EnvConfig):
    solver: vf.AgentConfig = vf.AgentConfig()

class Best(vf.Env[Config]):
    async def run(self, task, agents):
        await asyncio.gather(*(agents.solver.run(task) for _ in range(2)))

    async def finalize(self, task, episode):
        best = max(trace.reward for trace in episode.traces)
        for trace in episode.traces:
            trace.record_metric("best", trace.reward == best)

class Sums""",
).replace('["Sums"]', '["Sums", "Best"]\nimport asyncio')


def test_several_runs_of_one_agent_are_played_one_after_another_and_each_is_an_objective(environment):
    scene = lead(environment(BEST), 4)
    assert [text for text, _ in played(scene, "7", "8")] == ["Only the sum.\n4 + 4 = ?"] * 2
    wrong, right = scene.scores()
    assert (wrong["score"], wrong["score_best"], right["score"], right["score_best"]) == (0.0, 0.0, 2.0, 1.0)


FAILS = {
    "setup": ("    @vf.metric", "    async def setup(self, trace, runtime):\n        raise OSError\n\n    @vf.metric"),
    "reward": ("return float(trace", "return None and float(trace"),
    "nan": ("return float(trace.last_reply == self.data.answer)", "return float('nan')"),
}


@pytest.mark.parametrize("where", FAILS)
def test_what_an_environment_does_wrong_is_counted(environment, where):
    scene = lead(environment(ONE_TURN.replace(*FAILS[where])), 1)
    (found,) = played(scene, "2")
    assert found[1] == ("garbage" if where == "nan" else "error") and scene.scores() == [{"score": 0.0}]


LACKS = {
    "a container": ("class Sum(vf.Task[Data]):", "class Sum(vf.Task[Data]):\n    NEEDS_CONTAINER = True\n"),
    "scores right in a sandbox": ("right(self, trace)", "right(self, trace, runtime)"),
    "needs 2 models": (
        '["Sums"]', '["Sums", "Two"]\nclass Config(vf.EnvConfig):\n    a: vf.AgentConfig = vf.AgentConfig()\n'
        "    b: vf.AgentConfig = vf.AgentConfig()\nclass Two(vf.Env[Config]):\n    async def run(self, task, agents): pass\n",
    ),
    "needs tools that run elsewhere": (
        "class Sum(vf.Task[Data]):",
        "class Sum(vf.Task[Data]):\n    @classmethod\n    def toolsets(cls, config):\n"
        "        return [vf.Toolset(vf.ToolsetConfig(url='http://x'))]\n",
    ),
    "resources of its own": (
        '["Sums"]', '["Sums", "One"]\nclass Config(vf.EnvConfig):\n    a: vf.AgentConfig = vf.AgentConfig()\n'
        "class One(vf.Env[Config]):\n    async def run(self, task, agents): pass\n    async def start(self): pass\n",
    ),
    "cannot be loaded: KeyError": ("        return [Sum(", "        raise KeyError('x')\n        return [Sum("),
    "exports no Taskset subclass": ('["Sums"]', "[]"),
    "cannot be imported: SyntaxError": ("class Sums", "class"),
    "two tasks of one key": ("    @vf.metric", "    key = 'same'\n\n    @vf.metric"),
}  # fmt: skip


@pytest.mark.parametrize("lack", LACKS)
def test_an_environment_that_needs_more_or_cannot_be_loaded_is_one_sentence(environment, lack):
    with pytest.raises(ValueError, match=lack):
        environment(ONE_TURN.replace(*LACKS[lack]))


def test_a_file_does_not_take_the_name_of_another_module(vf, tmp_path):
    (tmp_path / "json.py").write_text(ONE_TURN)
    with pytest.raises(ValueError, match="a module json exists already; call .*json.py something else"):
        Verifiers(str(tmp_path / "json.py"))
    with pytest.raises(ValueError, match="there is no file absent.py"):
        Verifiers("absent.py")
    with pytest.raises(ValueError, match="the environment absent-v1 cannot be loaded: ModuleNotFoundError"):
        Verifiers("absent-v1")


def test_a_taskset_without_end_gives_its_first_tasks(environment, monkeypatch):
    monkeypatch.setattr(verifiers_api, "MOST", 11)
    endless = ONE_TURN.replace("    def load(self):", "    INFINITE = True\n    def load(self):")
    assert len(environment(endless).loaded.tasks) == 11


def test_a_run_of_the_example_trains(vf, tmp_path, one_thread):
    options = tiny_run.TALKED | {"task": "verifiers", "environment": str(EXAMPLE), "turns": 3, "turn_tokens": 6}
    trainer = start(tmp_path / "run", **options | {"rl_steps": 1})
    assert trainer.run()["reward_rl"] is not None
    (row,) = [r for r in lines(tmp_path / "run") if r["phase"] == "rl"]
    assert row["turns"] == row["calls"] > 1 and row["failed"] == 0 and {"score_found", "score_near"} <= row.keys()


# tools -------------------------------------------------------------------------------------------------------------------

CALC = """
import verifiers.v1 as vf
__all__ = ["Sums"]

class Count(vf.State):
    called: int = 0

class Calc(vf.Toolset[vf.ToolsetConfig, Count]):
    async def setup_task(self, data):
        self.offset = data.offset

    @vf.tool
    async def add(self, a: int, b: int) -> str:
        "Adds."
        self.state.called += 1
        return str(a + b + self.offset)

    @vf.tool
    async def fail(self) -> str:
        raise OSError("no disk")

class Data(vf.TaskData):
    offset: int

class Sum(vf.Task[Data, Count]):
    @classmethod
    def toolsets(cls, config):
        return [Calc(vf.ToolsetConfig())]

    @vf.reward
    async def right(self, trace):
        return float(trace.last_reply == str(4 + self.data.offset))

    @vf.metric
    async def called(self, trace):
        return trace.state.called

    @vf.metric
    async def results(self, trace):
        return len(trace.tool_messages)

class Sums(vf.Taskset[Sum]):
    def load(self):
        return [Sum(Data(prompt="2 + 2?", offset=i), self.config.task) for i in range(30)]
"""


def called(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_a_tool_is_called_in_place_and_its_result_is_the_next_observation(environment):
    env = environment(CALC, turns=6)
    scene = lead(env, 3)
    call = f"Let me see. {called('calc_add', a=2, b=2)}"
    first, then = played(scene, call, "7")
    assert "<tools>" in first[0] and '"name": "calc_add", "description": "Adds."' in first[0] and first[0].endswith("2 + 2?")
    assert then[0].endswith(f"User: 2 + 2?\nAssistant: {call}\nTool: 7")
    assert scene.scores() == [{"score_called": 1.0, "score_results": 1.0, "score_right": 1.0, "score": 1.0}]


@pytest.mark.parametrize(
    "call, answer",
    [
        (called("calc_add", a="x", b=1), "error: Error executing tool add: 1 validation error"),
        (called("calc_fail"), "error: Error executing tool fail"),
        (called("bash", command="ls"), "error: there is no tool 'bash'; there are calc_add, calc_fail"),
        ("<tool_call>{</tool_call>", "error: there is no tool ''"),
        ('<tool_call>{"name": "calc_add", "arguments": [1]}</tool_call>', "error: the arguments are no JSON object"),
        ('<tool_call>{"name": "calc_add", "arguments": "{"}</tool_call>', "error: the arguments are no JSON object"),
        (f"<tool_call>{'[' * 9999}</tool_call>", "error: there is no tool ''"),
    ],
    ids=range(7),
)
def test_a_call_that_fails_is_answered_with_why_and_the_scene_goes_on(environment, call, answer):
    scene = lead(environment(CALC, turns=6))
    found = played(scene, call, "4")
    assert [how for _, how in found] == ["fine", "fine"] and f"\nTool: {answer}" in found[1][0]
    assert scene.scores() == [{"score_called": 0.0, "score_results": 1.0, "score_right": 1.0, "score": 1.0}]


def test_who_only_calls_tools_has_no_turn_left(environment):
    scene = lead(environment(CALC, turns=3))
    assert len(played(scene, *[called("calc_add", a=1, b=1)] * 9)) == 3
    assert scene.scores() == [{"score_called": 3.0, "score_results": 3.0, "score_right": 0.0, "score": 0.0}]
