"""One full GRPO step of a model of a published shape with random weights, in the paper's setting, on one device.

Random weights write no pairs and never stop, so what is said is given: sampling does its work, then the given token is taken. A
write says its passage's pairs, and says them again until its token limit. So does an answer. Every other rollout of a group
answers "unknown", so that each has an advantage and every token is in the update.

θ0 is an adapter on all linear layers: training all weights of 8B does not fit on one GPU. Its rank is the preset's.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..agent.agent import Agent
from ..agent.config import AgentConfig, agent_config
from ..agent.loop import Clock
from ..agent.sampling import forced
from ..agent.write import list_prompt, render
from ..episode import Episode, Pair, Question
from ..machine import peak_memory
from ..models import loading
from ..models.chat import Chat
from ..rl import budget, grpo
from ..rl.budget import SHAPES, Shape
from ..rl.config import TrainConfig, train_config
from ..rl.log import finite
from ..rl.low_rank import LowRank
from ..tasks.task import Task
from . import trl_step
from .measure import ceilings
from .train import Waiting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PRESET = "paper"
MODELS = {"4b": "qwen3-4b", "8b": "qwen3-8b"}
HEAD = 128  # of both
TINY = Shape(64, 80, 3, 64, 32, 49152, True)  # heads of 16; the default tokenizer's vocabulary
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bf16 operations a second, by the data sheets
IDLE = "Then they talk about the weather for a while, and about nothing that anybody will ask for."
ROLLOUT = ("write", "learn", "answer")  # of a step's clock


@dataclass(frozen=True)
class Work:
    """What a step does. pairs: a write's; questions: an episode's."""

    model: str
    shape: Shape
    head: int
    agent: AgentConfig
    train: TrainConfig
    writes: int = 6
    pairs: int = 16
    questions: int = 4

    @classmethod
    def of(cls, size: str, episodes: int, tiny: bool = False) -> Work:
        """The preset's step over the shape that `size`, one of MODELS, means; `tiny`: the same over a model of no size."""
        agent = agent_config(PRESET)
        train = dataclasses.replace(train_config(PRESET), policy="lora", layout="ddp", rl_episodes=episodes)
        if not tiny:
            return cls(MODELS[size], SHAPES[MODELS[size]], HEAD, agent, train)
        agent = dataclasses.replace(
            agent,
            write=dataclasses.replace(agent.write, window=128, max_new=48),
            answer=dataclasses.replace(agent.answer, max_new=8),
        )
        train = dataclasses.replace(train, rl_group=2, micro_tokens=512)
        return cls("tiny", TINY, 16, agent, train, writes=2, pairs=2, questions=2)

    @property
    def rollouts(self) -> int:
        return self.train.rl_episodes * self.train.rl_group

    def plan(self, dtype: torch.dtype) -> dict:
        """What `tmem budget` says of it: GiB by item, and operations by part without those that are computed again."""
        items = budget.per_rank(self.shape, self.agent, self.train, writes=self.writes, bf16=dtype == torch.bfloat16)
        once = dataclasses.replace(self.train, checkpointing=False)
        sizes = {"writes": self.writes, "pairs": self.pairs, "questions": self.questions}
        return {
            "gib": {i.name: i.bytes / 2**30 for i in items},
            "flops": budget.flops(self.shape, self.agent, once, ranks=1, **sizes),
        }


class Counted(Task):
    """Streams of `work.writes` passages, each as long as the window and with `work.pairs` facts."""

    def __init__(self, chat: Chat, work: Work):
        self.chat, self.work = chat, work

    def facts(self, passage: int) -> list[Pair]:
        return [
            Pair(f"What is the number of box {i} in room {passage}?", f"{100 + (37 * i + 101 * passage) % 900}")
            for i in range(self.work.pairs)
        ]

    def episode(self, key: str, split: str) -> Episode:
        pairs = [self.facts(j) for j in range(self.work.writes)]
        asked = [(j, pairs[j % len(pairs)][-1 - j // len(pairs)]) for j in range(self.work.questions)]
        questions = tuple(Question(f"{key}/{j}", p.question, (p.answer,), "number") for j, p in asked)
        return Episode(key, tuple(map(self._passage, pairs)), tuple(map(tuple, pairs)), questions)

    def _passage(self, pairs: Sequence[Pair]) -> str:
        """The facts as text, and idle talk as far as the window goes."""
        told = (f"{p.question} It is {p.answer}." for p in pairs)
        lines: list[str] = []
        left = self.work.agent.write.window
        for line in itertools.chain(told, itertools.repeat(IDLE)):
            left -= self.chat.count(line) + 1
            if left < 0:
                return "\n".join(lines)
            lines.append(line)
        raise AssertionError  # idle talk has no end


class Said(dict):
    """What is said under a noise key, KEY/GROUP/writeJ or KEY/GROUP/answer/KEY/J: token ids up to the limit."""

    def __init__(self, task: Counted):
        super().__init__()
        self.task = task

    def __missing__(self, key: str) -> list[int]:
        agent, (before, _, place) = self.task.work.agent, key.rpartition("/")
        if place.startswith("write"):
            text, most = render(self.task.facts(int(place.removeprefix("write")))), agent.write.max_new
        else:
            rollout, _, episode = before.partition("/answer/")
            wrong = int(rollout.rpartition("/")[2]) % 2
            question = self.task.episode(episode, "train").questions[int(place)]
            text, most = agent.learn.unknown if wrong else question.answers[0], agent.answer.max_new
        self[key] = self.task.chat.said("\n".join([text] * most))[:most]
        return self[key]


def random_model(shape: Shape, head: int, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A frozen Qwen3 of this shape, heads of `head`, weights N(0, 0.02²) made on the device."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers, head_dim=head,
        num_attention_heads=shape.q // head, num_key_value_heads=shape.kv // head, vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False)
    return model.eval().requires_grad_(False)


def measured(work: Work, device: str, dtype: torch.dtype, note: Callable[[str], None]) -> dict:
    """One step after a short one of a single write, which compiles what is compiled: its seconds, rates, memory and row.

    `note` is told what begins, and may raise to end it. seconds: replay is the update of θ0 but for the optimizer; other is
    scoring, the probes and neutral text. mfu: the plan's operations, none of them shared or computed again, by the data sheet's
    peak; None for a device that PEAKS does not know.
    """
    clock, cuda = Waiting(), device == "cuda"
    limits = ceilings(not cuda, device)
    note("build")
    with clock("build"):
        model = random_model(work.shape, work.head, device, dtype)
        agent = Agent.build(model, loading.load_tokenizer(), work.agent, slots=work.rollouts)
        policy = LowRank(model, work.train.policy_rank, work.train.seed)
        policy.checkpointing = work.train.checkpointing
    short = dataclasses.replace(work, writes=1, questions=1)
    with clock("first"):
        _step(agent, policy, short, 0, Waiting(), lambda what: note(f"first step: {what}"))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    parts = Waiting()
    with clock("step"):
        row = _step(agent, policy, work, 1, parts, note)
    plan, seconds = work.plan(dtype), clock["step"]
    peak = torch.cuda.max_memory_allocated() if cuda else peak_memory()
    rate = sum(plan["flops"].values()) / seconds
    datasheet = PEAKS.get(torch.cuda.get_device_name()) if cuda else None
    gemm = 1e9 * limits[f"{str(dtype).removeprefix('torch.')} GF/s"]
    total = sum(plan["gib"].values())
    return {
        "seconds": {"step": seconds, **_split(parts, seconds), "build": clock["build"], "first_step": clock["first"]},
        "tokens": row["tokens"],
        "tokens_per_second": row["tokens"] / seconds,
        "flops_per_second": rate,
        "mfu": datasheet and rate / datasheet,
        "share_of_gemm_rate": rate / gemm,
        "gemm_flops_per_second": gemm,
        "memory": {
            "peak_gib": None if peak is None else peak / 2**30, "of": "tensors on the GPU" if cuda else "the process",
            "plan_gib": total, "peak_over_plan": peak / 2**30 / total if cuda else None,
        },
        "row": finite(row),
    }  # fmt: skip


def beside(work: Work, device: str, dtype: torch.dtype, note: Callable[[str], None]) -> dict:
    """What TRL takes for the writes of such a step: see `trl_step`."""
    gc.collect()  # what measured the step before
    if device == "cuda":
        torch.cuda.empty_cache()
    model, tokenizer = random_model(work.shape, work.head, device, dtype), loading.load_tokenizer()
    chat = Chat(tokenizer, model)
    task = Counted(chat, work)
    episodes = [task.episode(str(i), "train") for i in range(work.train.rl_episodes)]
    prompts = [chat.prompt(list_prompt(text)) for e in episodes for text in e.chunks]
    return trl_step.measured(work.train, work.agent.write.max_new, model, prompts, note)


def _step(agent: Agent, policy: LowRank, work: Work, number: int, clock: Clock, note: Callable[[str], None]) -> dict:
    """Step `number` of RL, by the trainer's own function; returns its line of metrics.jsonl."""
    task = Counted(agent.chat, work)
    with forced(Said(task)):
        return grpo.step(agent, policy, task, work.train, number, note=note, clock=clock)[0]


def _split(parts: Clock, whole: float) -> dict[str, float]:
    """The seconds of a step by what it does, from those that timings.jsonl has."""
    split = {name: parts.get(name, 0.0) for name in ROLLOUT}
    split = {"rollout": sum(split.values()), **split, "replay": parts["update"], "optimizer": parts["optimizer"]}
    return {**split, "other": whole - split["rollout"] - split["replay"] - split["optimizer"]}
