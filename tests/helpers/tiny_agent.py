"""A tiny agent, and episodes for it."""

import torch
from tiny import Letters, model

from tmem.agent.agent import Agent
from tmem.agent.config import AgentConfig, LearnConfig, MemoryConfig, WriteConfig
from tmem.episode import Episode, Question

CONFIG = AgentConfig(
    memory=MemoryConfig(rank=4, last_layers=2),
    learn=LearnConfig(lr=3e-3, epochs=3, batch=4),
    write=WriteConfig(window=80, max_new=40),
)
EPISODES = [
    Episode(
        f"e{i}",
        tuple(f"day {j}\nAda: {'la ' * (5 + i + j)}" for j in range(2 + i)),
        ((),) * (2 + i),
        (Question("q", f"what {'x' * i}?", ("a",), "attribute"),),
    )
    for i in range(3)
]


def agent_of(slots=4, dtype=torch.float32, config=CONFIG, **sizes):
    return Agent.build(model(dtype=dtype, **sizes), Letters(), config, slots)
