"""A store on a tiny model. `python tests/helpers/tiny_store.py FOLDER` learns until it is killed, and says what it learned."""

import hashlib
import itertools
import json
import sys
from dataclasses import replace

from tiny import pairs
from tiny_agent import CONFIG, agent_of

from tmem import MemoryStore

SETTINGS = replace(CONFIG, learn=replace(CONFIG.learn, rehearse=2, lr=0.01), answer=replace(CONFIG.answer, max_new=6))


def store_at(folder, slots=2, settings=SETTINGS, **sizes):
    return MemoryStore(agent_of(slots, config=settings, **sizes), folder)


def bits(store, name):
    """The memory's weights, copied."""
    with store.using([name]) as (memory,):
        return store.agent.bank.param[memory.row].clone()


def asked(store, name, tags="abz"):
    return [store.ask(name, p.question) for tag in tags for p in pairs(3, tag)]


def hashed(weights):
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    with store_at(sys.argv[1]) as store:
        print("open", flush=True)
        for turn in itertools.count():
            name = "abc"[turn % 3]
            store.make(name, exist_ok=True)
            write = store.learn(name, pairs(2, f"{name}{turn}"))
            print(json.dumps([name, write.id, hashed(bits(store, name))]), flush=True)
