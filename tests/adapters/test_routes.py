"""Routes belong to a context: whatever threads and tasks run beside each other, each computes with its own slots."""

import asyncio
import contextlib
import contextvars
import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import Letters, model, pairs
from tiny_agent import LEARN

from tmem.adapters.bank import MLP, AdapterBank
from tmem.agent.decode import decode
from tmem.agent.graphs import outdate
from tmem.agent.learn import learn
from tmem.agent.steps import Steps
from tmem.models.chat import Chat
from tmem.rl.policy import Sharded

IDS = torch.randint(1, 160, (3, 7), generator=torch.Generator().manual_seed(0))
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)


def filled(bank, *slots):
    for slot in slots:
        generator = torch.Generator().manual_seed(slot)
        bank.param[slot] = 0.1 * torch.randn(bank.param.shape[1], generator=generator)
        bank.written(slot)
    return slots


def set_up(slots=4, targets=ALL, **options):
    network = model()
    bank = AdapterBank(network, slots, 4, targets=targets, **options)
    return network, bank, filled(bank, *(bank.alloc() for _ in range(slots)))


def logits(network, ids=IDS):
    return network(input_ids=ids).logits


def beside(*works, times=1):
    """What each work returns, all running at once, `times` times over; every thread starts when all are there."""
    ready = threading.Barrier(len(works))

    def run(work):
        ready.wait()
        return [work() for _ in range(times)]

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(run, work) for work in works]]


def logits_of(network, bank, slot):
    with bank.route([slot] * 3, learn=False):
        return logits(network)


def routed(network, bank, slots):
    def work():
        with torch.no_grad(), bank.route(slots, learn=False):
            return logits(network)

    return work


def test_threads_compute_each_with_its_own_slots_and_the_base_with_none():
    network, bank, slots = set_up()
    with torch.no_grad():
        base = logits(network)
    works = [routed(network, bank, [s] * 3) for s in slots] + [lambda: logits(network).detach()]
    alone = [work() for work in works]
    for want, found in zip(alone, beside(*works, times=20)):
        assert all(torch.equal(x, want) for x in found)
    assert len({x.sum().item() for x in alone}) == len(alone)
    with torch.no_grad():
        assert torch.equal(logits(network), base) and torch.equal(alone[-1], base)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_of_threads_are_those_of_each_alone(checkpointed):
    network, bank, slots = set_up()
    network.train()
    if checkpointed:
        network.gradient_checkpointing_enable({"use_reentrant": False})

    def work(slot):
        def run():
            with bank.route([slot] * 3):
                loss = logits(network).square().mean()
            loss.backward()

        return run

    def gradients(how):
        bank.grad.zero_()
        how()
        return bank.grad.clone()

    works = [work(s) for s in slots]
    alone = gradients(lambda: [w() for _ in range(4) for w in works])
    assert all(alone[s].any() for s in slots)
    assert torch.equal(gradients(lambda: beside(*works, times=4)), alone)
    twice = gradients(lambda: [works[0]() for _ in range(2)])
    for _ in range(5):
        assert torch.equal(gradients(lambda: beside(works[0], works[0])), twice)  # into one slot: nothing is lost


def test_a_backward_may_run_in_another_thread_than_its_forward():
    network, bank, (slot, other, *_) = set_up()
    network.train()
    network.gradient_checkpointing_enable({"use_reentrant": False})
    with bank.route([slot] * 3):
        logits(network).square().mean().backward()
    want = bank.grad.clone()
    bank.grad.zero_()
    with bank.route([slot] * 3):
        loss = logits(network).square().mean()

    def backward():
        with bank.route([other] * 3):  # what is open there does not matter
            loss.backward()

    beside(backward)
    assert torch.equal(bank.grad, want)


@pytest.mark.parametrize("fixed", [False, True])
def test_threads_decode_as_each_alone(fixed):
    """Prefill, single tokens and whole passes side by side: nothing of a pass is kept where another one finds it."""
    network, bank, slots = set_up()
    prompts = [[5, 6, 7, 8], [9, 10, 11]]

    def work(slot):
        return lambda: [
            (g.ids, g.logprobs) for g in decode(network, prompts, bank=bank, slots=[slot, -1], end=0, max_new=12, fixed=fixed)
        ]

    works = [work(s) for s in slots[:3]]
    alone, whole = [w() for w in works], routed(network, bank, [slots[3]] * 3)
    want = whole()
    *found, passes = beside(*works, whole, times=4)
    assert found == [[x] * 4 for x in alone] and all(torch.equal(x, want) for x in passes)
    assert len({str(x) for x in alone}) == 3


def test_threads_learn_as_each_alone():
    network, bank, _ = set_up(3)
    chat, config = Chat(Letters()), replace(LEARN, lr=0.01, epochs=3)

    def work(slot):
        def run():
            bank.reset(slot)
            return learn(network, bank, [(slot, pairs(5, f"t{slot}"))], chat, config)[0]

        return run

    works = [work(s) for s in range(3)]
    alone, weights = [w() for w in works], bank.param.clone()
    assert beside(*works, times=3) == [[x] * 3 for x in alone]
    assert torch.equal(bank.param, weights)


def test_tasks_take_turns_each_under_its_own_route():
    network, bank, slots = set_up()
    alone = [routed(network, bank, [s] * 3)() for s in slots]

    async def tenant(slot):
        out = []
        with torch.no_grad(), bank.route([slot] * 3, learn=False):
            for _ in range(5):
                await asyncio.sleep(0)
                out.append(logits(network))
                out.append(await asyncio.to_thread(logits, network))  # a copy of the task's context
        return out

    async def all_of_them():
        return await asyncio.gather(*map(tenant, slots))

    with torch.no_grad():
        for want, found in zip(alone, asyncio.run(all_of_them())):
            assert all(torch.equal(x, want) for x in found)


def test_a_task_that_outlives_the_route_it_began_in_is_refused():
    network, bank, (slot, *_) = set_up()

    async def late(go_on):
        await go_on.wait()
        return logits(network)

    async def main():
        go_on = asyncio.Event()
        with bank.route([slot] * 3):
            task = asyncio.create_task(late(go_on))
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(RuntimeError, match="the block that opened this route has ended"):
            await task
        return logits(network)  # the task that opened it goes on with the base model

    base = logits(network)
    assert torch.equal(asyncio.run(main()), base)
    with bank.route([slot] * 3):
        copied = contextvars.copy_context()
        assert torch.equal(copied.run(logits, network), logits(network)) and not torch.equal(logits(network), base)
    with pytest.raises(RuntimeError, match="the block that opened this route has ended"):
        copied.run(logits, network)
    network.train()
    network.gradient_checkpointing_enable({"use_reentrant": False})
    with bank.route([slot] * 3):
        logits(network)  # from now on layers are called through the checkpoint
    with pytest.raises(RuntimeError, match="the block that opened this route has ended"):
        copied.run(logits, network)


def test_a_thread_started_inside_a_route_begins_with_the_base_model():
    network, bank, (slot, *_) = set_up()
    base = logits(network)
    with bank.route([slot] * 3):
        assert torch.equal(beside(lambda: logits(network))[0][0], base) and not torch.equal(logits(network), base)


def test_routes_close_however_their_blocks_are_left():
    network, bank, (a, b, *_) = set_up()
    with torch.no_grad():
        base, of_a, of_b = logits(network), routed(network, bank, [a] * 3)(), routed(network, bank, [b] * 3)()
        first, second = bank.route([a] * 3, learn=False), bank.route([b] * 3, learn=False)
        first.__enter__(), second.__enter__()
        assert torch.equal(logits(network), of_b)
        first.__exit__(None, None, None)  # out of order
        assert torch.equal(logits(network), of_b)
        second.__exit__(None, None, None)
        assert torch.equal(logits(network), base)
        with pytest.raises(ZeroDivisionError), bank.route([a] * 3), bank.route([b] * 3):
            raise ZeroDivisionError
        assert torch.equal(logits(network), base)

        def generator():
            with bank.route([a] * 3, learn=False):
                yield logits(network)

        opened = generator()
        assert torch.equal(next(opened), of_a)
        beside(opened.close)  # left by another thread than entered it
        assert torch.equal(logits(network), base)
        with bank.route([b] * 3, learn=False):
            left = bank.route([a] * 3, learn=False)
            left.__enter__()
            beside(lambda: left.__exit__(None, None, None))
            assert torch.equal(logits(network), of_b)
        with bank.route([a] * 3, learn=False), pytest.raises(ValueError, match="a batch of 2 rows, but 3 slots"):
            logits(network, IDS[:2])
        assert torch.equal(logits(network), base)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_routes_of_two_banks_under_one_model_nest(checkpointed):
    network = model()
    banks = [AdapterBank(network, 2, 4, targets=targets, seed=i) for i, targets in enumerate((("q_proj", "o_proj"), MLP))]
    for bank in banks:
        filled(bank, bank.alloc(), bank.alloc())
    network.train()

    def gradients(order):
        for bank in banks:
            bank.grad.zero_()
        with banks[order[0]].route([0] * 3):
            inner = logits(network)
            with banks[order[1]].route([1] * 3):
                loss = logits(network).square().mean()
            assert torch.equal(logits(network), inner)
        loss.backward()
        return [bank.grad.clone() for bank in banks]

    with banks[0].route([0] * 3), banks[1].route([1] * 3):
        logits(network).square().mean().backward()
    want = [bank.grad.clone() for bank in banks]
    assert want[0][0].any() and want[1][1].any()
    if checkpointed:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(map(torch.equal, gradients((0, 1)), want))
    banks[0].detach()
    banks[0].attach()
    assert [bool(g.any()) for g in gradients((1, 0))] == [True, True]
    works = [routed(network, banks[i // 2], [i % 2] * 3) for i in range(4)]
    alone = [work() for work in works]
    for w, found in zip(alone, beside(*works, times=5)):
        assert all(torch.equal(x, w) for x in found)


GONE_ON = "route: a generator went on in another context than it opened its route in, or with a later route open"


def steps_of(network, bank, slot):
    """A generator that computes three times under one route."""
    with bank.route([slot] * 3, learn=False):
        for _ in range(3):
            yield logits(network).detach()


def test_a_generator_is_served_where_it_began_and_refused_elsewhere():
    """Steps in a context of their own, as web frameworks take them from an iterator, would find no route there."""
    network, bank, (a, b, *_) = set_up()
    of_a, of_b = (routed(network, bank, [s] * 3)() for s in (a, b))
    assert all(torch.equal(x, of_a) for x in steps_of(network, bank, a))
    stepped = steps_of(network, bank, a)
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(contextvars.copy_context().run, next, stepped).result(), of_a)
        with pytest.raises(RuntimeError, match=GONE_ON):
            pool.submit(contextvars.copy_context().run, next, stepped).result()
    first, second = steps_of(network, bank, a), steps_of(network, bank, b)
    assert torch.equal(next(first), of_a) and torch.equal(next(second), of_b)
    with pytest.raises(RuntimeError, match=GONE_ON):
        next(first)
    assert torch.equal(next(second), of_b)
    second.close()
    first = steps_of(network, bank, a)
    next(first)
    with bank.route([b] * 3), pytest.raises(RuntimeError, match=GONE_ON):
        next(first)

    async def streamed():
        async def tokens(slot):
            with bank.route([slot] * 3):
                while True:
                    yield logits(network)

        first, second = tokens(a), tokens(b)
        assert torch.equal(await anext(first), of_a) and torch.equal(await anext(second), of_b)
        with pytest.raises(RuntimeError, match=GONE_ON):
            await anext(first)
        await second.aclose()

    with torch.no_grad():
        asyncio.run(streamed())
        del first, stepped
        assert torch.equal(routed(network, bank, [b] * 3)(), of_b) and not torch.equal(logits(network), of_a)


def test_what_a_generator_opens_within_itself_serves_it():
    """Helpers of a with statement, routes one inside another, decoding and checkpoints, while another's route is open too."""
    network, bank, (a, b, *_) = set_up()
    network.gradient_checkpointing_enable({"use_reentrant": False})

    @contextlib.contextmanager
    def helper(slot):
        with bank.route([slot] * 3):
            yield

    def under(slot):
        with bank.route([slot] * 3):
            yield

    def told(slots):
        network.eval()
        return [g.ids for g in decode(network, [[5, 6]], bank=bank, slots=slots, end=0, max_new=3)]

    def work():
        network.train()
        with bank.route([a] * 3):
            loss = logits(network).square().mean()
            yield loss.detach()
            with helper(b):
                yield logits(network).detach()
            yield told([b])
            yield told(None)
            loss.backward()
            yield bank.grad.clone()

    def found():
        bank.grad.zero_()
        return list(work())

    with torch.no_grad():
        of_b = logits_of(network, bank, b)
    want = found()
    assert want[2] == told([b]) and want[3] == told(None) != want[2] and want[4][a].any() and torch.equal(want[1], of_b)
    waiting = under(b)
    contextvars.copy_context().run(next, waiting)  # another's, open elsewhere
    assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(found(), want, strict=True))


def test_a_model_that_drops_the_cache_does_not_decode():
    network, _, _ = set_up()
    network.gradient_checkpointing_enable({"use_reentrant": False})
    network.train()
    with pytest.raises(ValueError, match=r"decode: .* trains with gradient checkpointing, .* call model.eval\(\) first"):
        decode(network, [[5, 6]], end=0, max_new=3)


def test_slots_go_to_one_tenant_each():
    network, bank, slots = set_up(64)
    for slot in slots:
        bank.free(slot)
    found = beside(*[bank.alloc] * 8, times=8)
    assert sorted(sum(found, [])) == list(range(64))
    with pytest.raises(RuntimeError, match="0 of 64 slots are free, expected 1"):
        bank.claim(2)
    for slot in range(64):
        bank.free(slot)
    assert bank.freed == 128
    with pytest.raises(RuntimeError, match="64 of 64 slots are free, expected 65"):
        bank.claim(65, 65)
    assert not any(bank.used) and bank.claim(0, 0) == []
    claimed = beside(*[lambda: bank.claim(30)] * 3)
    assert sorted(sum((x for (x,) in claimed), [])) == list(range(64)) and sorted(len(x) for (x,) in claimed) == [4, 30, 30]


def test_a_slot_that_changed_hands_is_no_longer_served():
    """Freed and taken by somebody else in the middle of a route, a decode and an update: refused, and nothing is written."""
    network, bank, (slot, *_) = set_up(1)

    def change_hands(*_):
        bank.free(slot)
        assert bank.alloc() == slot

    with bank.route([slot] * 3):
        change_hands()
        with pytest.raises(RuntimeError, match="slot 0 was freed while it is routed"):
            logits(network)
    for fixed in (False, True):
        with pytest.raises(RuntimeError, match="slot 0 was freed while it is routed"):
            decode(network, [[5, 6]], bank=bank, slots=[slot], end=0, max_new=4, watch=change_hands, fixed=fixed)
    with pytest.raises(RuntimeError, match="slot 0 was freed while it is routed"):
        learn(network, bank, [(slot, pairs(3))], Chat(Letters()), replace(LEARN, epochs=2), on_step=change_hands)
    assert bank.is_zero(slot)


def test_decoding_serves_what_it_is_told_whatever_is_open_around_it():
    network, bank, (a, b, *_) = set_up()
    prompts = [[5, 6, 7], [8, 9], [10], [11, 12]]

    def answers(slots, fixed):
        return [g.ids for g in decode(network, prompts, bank=bank, slots=slots, end=0, max_new=8, fixed=fixed)]

    for fixed in (False, True):
        base, of_b = answers(None, fixed), answers([b] * 4, fixed)
        assert base != of_b
        with bank.route([a] * 4):
            assert answers(None, fixed) == base and answers([b] * 4, fixed) == of_b


def test_one_route_may_serve_several_threads():
    """What neighbouring projections share of one read stays with the thread that read it."""
    network, bank, (slot, *_) = set_up()
    bank.reads_once = True
    others = [torch.randint(1, 160, (3, 7), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    with torch.no_grad(), bank.route([slot] * 3, learn=False):
        want = [logits(network, ids) for ids in others]

        def work(ids):
            context = contextvars.copy_context()

            def run():
                with torch.no_grad():
                    return context.run(logits, network, ids)

            return run

        for w, found in zip(want, beside(*map(work, others), times=10)):
            assert all(torch.equal(x, w) for x in found)


def test_a_copied_model_brings_its_own_bank():
    network, bank, (slot, *_) = set_up()
    twin = copy.deepcopy(network)
    own = vars(twin.model.layers[0].mlp.down_proj)["forward"].args[0]
    assert own is not bank and own.lock is not bank.lock
    with bank.route([slot] * 3):
        routed_here, there = logits(network), logits(twin)
    assert torch.equal(there, logits(network)) and not torch.equal(routed_here, there)


# steps at fixed addresses ------------------------------------------------------------------------------------------------


def kept_steps(owner):
    return list(vars(owner)["_decode_steps"].values())


def test_steps_are_made_anew_once_the_weights_lie_elsewhere():
    network, bank, (slot, *_) = set_up()

    def told(fixed=True):
        return [g.ids for g in decode(network, [[5, 6, 7]], bank=bank, slots=[slot], end=0, max_new=6, fixed=fixed)]

    told()
    (first,) = kept_steps(bank)
    told()
    assert kept_steps(bank) == [first]
    for move in (
        lambda: network.load_state_dict({k: v.clone() for k, v in network.state_dict().items()}, assign=True),
        lambda: setattr(network.lm_head, "weight", torch.nn.Parameter(1.5 * network.lm_head.weight.detach())),
        lambda: network.to(torch.float64).to(torch.float32),
        lambda: outdate(network),
        lambda: Sharded.publish(SimpleNamespace(model=network, modules=[], _gather_again=bool)),
        lambda: setattr(bank.sites[0], "a", bank.sites[0].a.clone()),
    ):
        before = kept_steps(bank)
        move()
        assert told() == told(fixed=False)
        assert len(kept_steps(bank)) == 1 and kept_steps(bank) != before
    bank.free(slot)
    for other in range(4):
        if bank.used[other]:
            bank.free(other)
    bank.take(bank.factors)  # in place: what was captured reads it
    before = kept_steps(bank)
    slot = bank.alloc()
    told()
    assert kept_steps(bank) == before


def test_steps_are_lent_to_one_at_a_time():
    network, bank, _ = set_up()
    with Steps.lend(network, bank, 4, 100) as mine:
        with Steps.lend(network, bank, 4, 100) as other:
            assert other is not mine and other.ids.data_ptr() != mine.ids.data_ptr()
    with Steps.lend(network, bank, 3, 512) as again:
        assert again in (mine, other)
    with pytest.raises(ZeroDivisionError), Steps.lend(network, bank, 4, 100) as lost:
        raise ZeroDivisionError
    assert kept_steps(bank) == [lost]
