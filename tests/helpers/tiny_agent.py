"""A tiny agent, its settings, and episodes for it."""

from dataclasses import replace

import torch
from tiny import PLAIN, Letters, model

from tmem.agent.agent import Agent
from tmem.agent.config import agent_config
from tmem.episode import Episode, Question
from tmem.rl.config import train_config

AGENT, TRAIN = agent_config(PLAIN), train_config(PLAIN)  # those of plain.toml
LEARN = AGENT.learn
CONFIG = replace(
    AGENT,
    adapter=replace(AGENT.adapter, rank=4, last_layers=2),
    learn=replace(LEARN, lr=3e-3, epochs=3, batch=4),
    write=replace(AGENT.write, window=80, max_new=40),
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
