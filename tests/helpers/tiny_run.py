"""A training run of a tiny model, for tests: in this process, or `python tests/tiny_run.py OUT [--kill WHERE N] [...]`.

Under torchrun every rank runs it. WHERE is checkpoint, rollout or update: at the N-th time the process (the last rank) kills
itself there.
"""

import argparse
import json
import os
import signal
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import PLAIN, Letters, model

from tmem.agent import agent
from tmem.agent.write import Written
from tmem.episode import Pair
from tmem.files import folders
from tmem.files.folders import atomic_file
from tmem.models import loading
from tmem.models.quantised import quantise_
from tmem.models.shards import stored
from tmem.rl import grpo, trainer
from tmem.rl.workers import Workers
from tmem.rl.world import ALONE, World

PRESET = f"""
extends = "{PLAIN}"
[adapter]
rank = 4
last_layers = 2
[learn]
epochs = 2
[write]
window = 400
max_new = 8
[answer]
max_new = 4
[train]
warm_steps = 2
warm_plain = 1
warm_episodes = 2
rl_steps = 3
rl_episodes = 2
rl_group = 2
rl_kl = 0.01
rl_lr = 1e-3
reward = "shout"
control_steps = 1
eval_episodes = 3
eval_split = "dev"
save_every = 0.0
"""

SHORT = {"rl_steps": 1, "eval_episodes": 1}
BRIEF = {"warm_steps": 1, "rl_steps": 2, "eval_episodes": 1}
SEARCHED = {
    "task": f"{Path(__file__).with_name('tiny_search.py')}:Sought", "warm_steps": 1, "warm_plain": 0, "warm_episodes": 1,
    "rl_steps": 2, "rl_kl": 0.0, "eval_episodes": 1,
}  # fmt: skip
TALKED = {
    "task": f"{Path(__file__).with_name('tiny_dialogue.py')}:Guessing", "reward": "score", "warm_steps": 0, "rl_steps": 2,
    "rl_kl": 0.0, "eval_episodes": 1,
}  # fmt: skip


def shout(question, answer):
    """A reward that a random model's answers have some variance in."""
    return {"f1": 0.0, "em": 0.0, "intrusion": 0, "shout": len(set(answer)) / 8 + 0.01 * len(answer)}


def prepare(out: Path, extra: str = "", dtype: torch.dtype = torch.float32) -> Path:
    """The preset's file; tiny models that compute in `dtype` instead of real ones."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.toml"
    with atomic_file(file) as work:  # every rank writes it, and none may read another's half
        work.write_text(PRESET.replace('reward = "shout"', f'reward = "shout"\ntask = "{Path(__file__)}:Shouts"') + extra)
    loading.default_dtype = lambda device="cpu": dtype

    def load(name=None, bits=None, **wanted):
        network = model(dtype=wanted.get("dtype", dtype), max_position_embeddings=4096)
        return network if bits is None else quantise_(network, bits, "cpu"), Letters()

    def unfilled(name=None, adapter=None):
        folder, whole = out.parent / f"weights-{os.getpid()}", model(max_position_embeddings=4096)
        folder.mkdir(exist_ok=True)
        save_file(dict(whole.named_parameters()), folder / "model.safetensors")
        with torch.device("meta"):
            network = type(whole)(whole.config).eval()
        return network, Letters(), stored(folder)

    def save(network, tokenizer, path, weights=None):
        path.mkdir(parents=True, exist_ok=True)
        torch.save(weights or network.state_dict(), path / "weights.pt")

    loading.load_model, loading.unfilled, loading.save_model = load, unfilled, save
    return file


def start(out: Path, *, resume=False, extra="", dtype=torch.float32, world=ALONE, **overrides):
    """The trainer of a run in `out`."""
    return trainer.Trainer(str(prepare(out, extra, dtype)), out, resume=resume, world=world, **overrides)


def tell() -> None:
    """From now on every write holds a pair that depends on what was said, so that Δ is learned and differs."""

    def parse(text, **_):
        return Written([Pair(f"what is {text[:3]!r}?", repr(text[3:5]))])

    agent.parse = parse


def weights(out: Path, phase="rl"):
    return torch.load(out / phase / "weights.pt", weights_only=True)


def lines(out: Path, name="metrics"):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def die_at(where: str, count: int) -> None:
    """SIGKILL at the count-th time that a checkpoint's files were written, that rollouts of RL are about to learn their second
    write, or that the optimizer has moved θ0 and the model does not have it yet."""
    calls = []

    def die_if_due():
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    sync, sample, learn, step = folders.sync, grpo.sample, agent.learn, torch.optim.AdamW.step

    def sampled(*args, **options):
        learned = []

        def learning(*args):
            learned.append(1)
            if len(learned) == 2:
                die_if_due()
            return learn(*args)

        agent.learn = learning
        try:
            return sample(*args, **options)
        finally:
            agent.learn = learn

    def synced(folder):
        die_if_due()
        sync(folder)

    def stepped(*args):
        step(*args)
        die_if_due()

    if where == "checkpoint":
        folders.sync = synced
    elif where == "rollout":
        grpo.sample = sampled
    else:
        torch.optim.AdamW.step = stepped


from tmem.tasks.stream import Stream  # noqa: E402  (Shouts below is loaded from this file by its path)


class Shouts(Stream):
    """Streams whose answers are judged by `shout`."""

    def score(self, question, answer):
        return shout(question, answer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kill", nargs=2)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--extra", default="")
    parser.add_argument("--bits")
    parser.add_argument("--long", action="store_true", help="sixty RL steps instead of three")
    parser.add_argument("--search", action="store_true", help="searches instead of streams")
    parser.add_argument("--talk", action="store_true", help="conversations that coroutines lead")
    parser.add_argument("--short", action="store_true", help="one")
    parser.add_argument("--brief", action="store_true", help="two, after one supervised step")
    parser.add_argument("--tell", action="store_true", help="whatever is said, a pair is written")
    parser.add_argument("--workers", help="their addresses, between commas")
    parser.add_argument("--dtype", default="float32", help="what the model computes in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = World.join()
    if options.kill and world.rank == world.size - 1:
        die_at(options.kill[0], int(options.kill[1]))
    lengths = {"long": {"rl_steps": 60, "warm_steps": 10}, "short": SHORT, "brief": BRIEF, "search": SEARCHED, "talk": TALKED}
    length = next((given for name, given in lengths.items() if getattr(options, name)), {})
    dtype, workers = getattr(torch, options.dtype), options.workers and Workers(options.workers.split(","))
    if options.tell:
        tell()
    start(
        options.out, resume=options.resume, extra=options.extra, dtype=dtype, world=world, bits=options.bits, workers=workers,
        **length,
    ).run()  # fmt: skip
    world.leave()
