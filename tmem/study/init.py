"""Study `init`: how initialisations of A compare. One model, one optimizer, the same facts; only A differs.

AdamW moves every entry of B by about lr, so ΔW = B A grows as lr times the length of A's rows (SGD: times its square). The
sweep is therefore over the *reach* of a step, lr · RMS row length of A: at one reach every init changes W by about as much,
whatever its scale, and what is left of a difference is the subspace. Every init has its best reach chosen on the seeds of
one split and is then judged, at that reach, on seeds and words of another.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.bank import AdapterBank
from ..adapters.calibration import TEXTS
from ..adapters.init import INITS, record_inputs
from ..agent.config import agent_config
from ..agent.learn import _minibatches, _pass
from ..agent.renderings import BARE
from ..episode import Pair
from ..models import forward as fw
from ..models.chat import Chat
from ..models.tiny import default_or_tiny
from ..ops import batched_rsvd
from ..tasks import stream
from ..words import identity

RANK, LAST_LAYERS = 16, 12  # those of the default preset
SAME_LR = {"adamw": 1e-3, "sgd": 5e-3}  # AdamW: of the default preset; SGD: where `sigma` learns


@dataclass(frozen=True)
class Design:
    """What is swept, and on how many seeds."""

    inits: tuple[str, ...] = INITS
    reaches: tuple[float, ...] = (0.0015, 0.004, 0.01, 0.025, 0.06)
    steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)  # where loss and recall are taken
    tuning: int = 5  # seeds on which the reach is chosen
    judging: int = 36  # other seeds, of another split
    facts: int = 8
    sgd_inits: tuple[str, ...] = ("sigma", "none", "random")
    sgd_reaches: tuple[float, ...] = (0.3, 1.0, 3.0)

    @classmethod
    def quick(cls) -> Design:
        return cls(("sigma", "random", "activation"), (0.01,), (1, 2), 1, 2, 2, ("sigma",), (1.0,))


@dataclass(frozen=True)
class Facts:
    """What is taught, and the same asked in a paraphrase."""

    taught: tuple[Pair, ...]
    asked: tuple[Pair, ...]


def facts_of(seed: int, split: str, count: int) -> Facts:
    """`count` facts of one conversation that are still true at its end."""
    episode = stream.episode(f"init-{seed}", split, 2)
    found: dict[str, tuple[Pair, Pair]] = {}
    for pairs, probes in zip(episode.pairs, stream.probes(episode)):
        for pair, probe in zip(pairs, probes[::2], strict=True):
            found[identity(pair.question)] = pair, Pair(probe.text, pair.answer)
    some = list(found.values())[-count:]
    if len(some) < count:
        raise ValueError(f"bench init: {episode.id} has {len(some)} facts, expected {count}.")
    return Facts(*(tuple(x) for x in zip(*some)))


def compare_inits(quick: bool, watch: Callable[[str, int, int], None], kept: Callable[[str, Callable[[], list]], list]) -> dict:
    """{"rows", "energy"}: a row for every init, reach, seed and number of steps; where the layers' inputs lie.

    The default model on the CPU; `quick`: a tiny one. Rows have phase "tuning" or "judging", optimizer, init, reach, lr, swept
    (False: the learning rate that is the same for all), seed, steps, loss (nats per answer token of what is taught), recall
    (share of the paraphrases answered word for word) and norm (‖ΔW‖_F). `kept`: see bench.study.
    """
    design = Design.quick() if quick else Design()
    model, tokenizer = default_or_tiny(quick, "cpu", torch.float32)
    chat = Chat(tokenizer)
    model.requires_grad_(False)
    todo = [("tuning", "adamw", init) for init in design.inits]
    todo += [("judging", "adamw", init) for init in design.inits]
    todo += [("tuning", "sgd", init) for init in design.sgd_inits]
    rows: list[dict] = []
    for done, (phase, optimizer, init) in enumerate(todo):
        watch(f"{init}, {optimizer}: {phase}", done, len(todo) + 1)
        if phase == "judging":
            conversations = [facts_of(seed, "test", design.facts) for seed in range(design.judging)]
            settings = [(best_reach(rows, init), None)]
        else:
            conversations = [facts_of(seed, "train", design.facts) for seed in range(design.tuning)]
            reaches = design.reaches if optimizer == "adamw" else design.sgd_reaches
            settings = [*((reach, None) for reach in reaches), (None, SAME_LR[optimizer])]
        key = repr((phase, optimizer, init, settings, len(conversations), design.facts, design.steps))
        found = kept(key, functools.partial(_taught, model, chat, init, optimizer, conversations, settings, design))
        rows += [{"phase": phase, "optimizer": optimizer, "init": init, **row} for row in found]
    watch("where the inputs lie", len(todo), len(todo) + 1)
    return {"rows": rows, "energy": energy(model, chat, quick)}


def best_reach(rows: list[dict], init: str) -> float:
    """Of the sweep's reaches, the one with the best recall, averaged over seeds and the later half of the steps; at a tie the
    smaller."""
    mine = [r for r in rows if (r["phase"], r["optimizer"], r["init"], r["swept"]) == ("tuning", "adamw", init, True)]
    late = max(r["steps"] for r in mine) / 2
    mean = {}
    for reach in sorted({r["reach"] for r in mine}):
        found = [r["recall"] for r in mine if r["reach"] == reach and r["steps"] >= late]
        mean[reach] = sum(found) / len(found)
    return max(mean, key=mean.get)


def _taught(model, chat, init: str, optimizer: str, conversations: list[Facts], settings, design: Design) -> list[dict]:
    """All conversations at all settings at once: a slot each."""
    slots = len(conversations) * len(settings)
    texts = [chat.plain(text) for text in TEXTS] if init == "activation" else ()
    last = min(LAST_LAYERS, len(model.model.layers))
    bank = AdapterBank(model, slots, RANK, last_layers=last, init=init, texts=texts, optimizer=optimizer)
    try:
        length = torch.stack([site.a.square().sum() / RANK for site in bank.sites]).mean().sqrt().item()
        per_lr = length if optimizer == "adamw" else length**2
        where = {}
        for reach, lr in settings:
            for seed in range(len(conversations)):
                slot = bank.alloc(lr=lr or reach / per_lr)
                where[slot] = {"reach": reach or lr * per_lr, "lr": lr or reach / per_lr, "swept": lr is None, "seed": seed}
        config = dataclasses.replace(agent_config().learn, batch=design.facts, renderings=(BARE,))
        jobs = [(slot, conversations[place["seed"]]) for slot, place in where.items()]
        blocks = _minibatches(model, bank, [(slot, job.taught) for slot, job in jobs], chat, config)
        asked = _minibatches(model, bank, [(slot, job.asked) for slot, job in jobs], chat, config)
        rows = []
        for step in range(max(design.steps) + 1):
            losses = dict.fromkeys(where, 0.0)
            for minibatch in blocks:
                for slot, loss in _pass(model, bank, minibatch, backward=True).items():
                    losses[slot] += loss
            if step in design.steps or step == 0:
                recall = _recall(model, bank, asked[0])
                rows += [
                    {**place, "steps": step, "loss": _finite(losses[slot]), "recall": recall[slot],
                     "norm": _finite(bank.delta_norm(slot))}
                    for slot, place in where.items()
                ]  # fmt: skip
            bank.step(sorted(where))
        return rows
    finally:
        bank.detach()
        del bank
        gc.collect()


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


@torch.no_grad()
def _recall(model, bank, blocks) -> dict[int, float]:
    """Per slot, the share of sequences whose answer greedy decoding would give: each of its tokens is the likeliest."""
    right: dict[int, list[bool]] = {}
    for block in blocks:
        length = block.hidden.shape[1]
        positions = torch.arange(length)[None]
        with bank.route(block.slots, learn=False, lengths=block.lengths):
            hidden = fw.layers(model, block.hidden, positions, None, start=bank.first_layer)
            said = fw.logits(model, hidden[block.rows, block.columns]).argmax(-1).tolist()
        good: dict[int, bool] = {}
        for row, weight, token, target in zip(block.rows, block.weights, said, block.targets):
            if weight:
                good[row] = good.get(row, True) and token == target
        for row, all_ in good.items():
            right.setdefault(block.slots[row], []).append(all_)
    return {slot: sum(found) / len(found) for slot, found in right.items()}


def late(rows: Sequence[dict]) -> dict[int, float]:
    """Recall of each seed, averaged over the later half of the steps."""
    half = max(r["steps"] for r in rows) / 2
    by_seed: dict[int, list[float]] = {}
    for r in rows:
        if r["steps"] >= half:
            by_seed.setdefault(r["seed"], []).append(r["recall"])
    return {seed: sum(found) / len(found) for seed, found in by_seed.items()}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the 95 % interval of it by bootstrap over the values."""
    x = torch.tensor(list(values), dtype=torch.float64)
    draws = torch.randint(len(x), (10_000, len(x)), generator=torch.Generator().manual_seed(0))
    low, high = x[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(x.mean()), low, high


def summary(rows: Sequence[dict]) -> list[dict]:
    """Per init, of the rows judged: reach, lr, late recall with its interval, its difference to `sigma` paired by seed, and
    the mean loss after 4 steps (or the last, where there are fewer) and after all."""
    judged = [r for r in rows if r["phase"] == "judging"]
    last = max(r["steps"] for r in judged)
    base = late([r for r in judged if r["init"] == "sigma"])
    out = []
    for init in dict.fromkeys(r["init"] for r in judged):
        mine = [r for r in judged if r["init"] == init]
        recall = late(mine)
        loss = {at: [r["loss"] for r in mine if r["steps"] == at] for at in (min(4, last), last)}
        out.append({
            "init": init, "reach": mine[0]["reach"], "lr": mine[0]["lr"], "recall": interval(recall.values()),
            "over_sigma": interval([recall[seed] - base[seed] for seed in base]),
            "loss": [sum(x) / len(x) if None not in x else None for x in loss.values()],
        })  # fmt: skip
    return out


ATTENTION, MLP = ("q_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def energy(model, chat, quick: bool) -> list[dict]:
    """Share of ‖x‖², x what a layer reads in a conversation of the stream task, that lies in four subspaces of 16 directions:
    of the layer's largest ("top") and smallest ("bottom") right-singular values, of its inputs on TEXTS ("own", the init
    `activation`), and random ones (16/K, exactly on average). A row per layer and projection."""
    sites = {
        (i, name): getattr(layer.self_attn if name in ATTENTION else layer.mlp, name)
        for i, layer in enumerate(model.model.layers[: 2 if quick else None])
        for name in ATTENTION + MLP
    }
    modules = list(sites.values())
    fitted = record_inputs(model, modules, [chat.plain(text) for text in TEXTS])
    read = record_inputs(model, modules, [chat.plain(text) for text in stream.episode("init", "dev", 2).chunks])
    rows = []
    for (layer, name), module, seen, x in zip(sites, modules, fitted, read):
        v = torch.linalg.svd(module.weight.float(), full_matrices=False)[2]
        own = batched_rsvd([seen], RANK, compute=("V",))[0].Vh
        shares = {kind: _share(x, basis) for kind, basis in (("top", v[:RANK]), ("bottom", v[-RANK:]), ("own", own))}
        rows.append({"layer": layer, "name": name, "random": RANK / x.shape[1], **shares})
    return rows


def _share(x: Tensor, basis: Tensor) -> float:
    return float((x @ basis.T).square().sum() / x.square().sum())
