"""An environment of the verifiers package: a number is guessed, and every wrong guess gets a hint. No network is needed.

tmem train --preset verifiers --environment examples/guess_number.py --out runs/guess
"""

import re

import verifiers.v1 as vf

__all__ = ["GuessEnv", "GuessTaskset"]

MOST = 20


class GuessData(vf.TaskData):
    number: int


def guessed(reply):
    """The last number of a reply; None where there is none."""
    found = re.findall(r"[0-9]{1,9}", reply)
    return int(found[-1]) if found else None


class GuessTask(vf.Task[GuessData]):
    @vf.reward
    async def found(self, trace) -> float:
        return float(guessed(trace.last_reply) == self.data.number)

    @vf.reward(weight=0.2)
    async def near(self, trace) -> float:
        last = guessed(trace.last_reply)
        return 0.0 if last is None else max(0.0, 1 - abs(last - self.data.number) / MOST)

    @vf.metric
    async def guesses(self, trace) -> float:
        return float(trace.num_turns)


class GuessTaskset(vf.Taskset[GuessTask]):
    def load(self):
        for number in range(1, MOST + 1):
            for game in range(3):
                prompt = f"Game {game + 1}: I think of a number from 1 to {MOST}. Which is it? Say a number."
                yield GuessTask(GuessData(prompt=prompt, number=number), self.config.task)


class GuessEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class GuessEnv(vf.Env[GuessEnvConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as game:
            segment = await game.turn()
            while not segment.terminated and (last := guessed(segment.last_reply)) != task.data.number:
                hint = "Say a number." if last is None else "It is higher." if last < task.data.number else "It is lower."
                segment = await game.turn(hint)
