"""Each rank reads its rows of a model's files: python -m torch.distributed.run loaded_in_parts.py OUT SMALL BIG OVER OTHER...

OUT/RANK.json then has the peak of reading BIG and the bytes that the rank holds of it, and the same of OVER, an adapter's
folder. It ends with an error where SMALL or a model in OTHER, which may be such folders, is not what `load_model` loads.
"""

import gc
import json
import sys
from pathlib import Path

import torch

from tmem.models import loading
from tmem.rl import policy
from tmem.rl.world import World


def resident(name):
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line[:5] == name)


def read(name, world):
    """The policy, and what was resident at most until it was filled."""
    model, _, weights = loading.unfilled(*loading.apart(name))
    found, fill_ = [], policy.fill_

    def spied(*arguments):
        fill_(*arguments)
        found.append(resident("VmHWM"))

    policy.fill_ = spied
    try:
        return policy.Sharded(model, world, torch.float32, weights), found[0]
    finally:
        policy.fill_ = fill_


def compare(name, world):
    made, _ = read(name, world)
    want, _ = loading.load_model(name, dtype=torch.float32, device="cpu")
    for layer in want.model.layers:  # which then run by transformers' modules, as sharded ones do: see tmem.models.pieces
        layer.register_forward_pre_hook(lambda *_: None)
    ids = torch.randint(3, 100, (2, 40), generator=torch.Generator().manual_seed(0))
    where = ids, [0, 1], [39, 20]
    with torch.no_grad():
        got, right = made.logits(*where), policy._Pieces(want)(*where)
    # A product of some rows may be rounded otherwise than that of all.
    allowed = {"rtol": 0, "atol": 0} if loading.apart(name)[1] is None else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(got, right, rtol=100 * allowed["rtol"], atol=100 * allowed["atol"])
    state = made.full_state()
    for key, weight in want.state_dict().items() if world.first else ():
        torch.testing.assert_close(state[key], weight, **allowed, msg=key)


def measured(name, world):
    """The peak of reading it, and the bytes that are held then."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident("VmRSS")
    made, most = read(name, world)
    return most - before, sum(p.to_local().nbytes for p in made.params)


def main(out, small, big, over, *others):
    world = World.join()
    for name in (small, *others):  # whatever is imported or set up once, too
        compare(name, world)
    Path(out, f"{world.rank}.json").write_text(json.dumps([measured(name, world) for name in (big, over)]))
    world.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
