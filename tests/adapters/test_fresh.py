"""Gradients that count as zero though their memory holds what a step has used: nobody ever sees what was there."""

import torch
from tiny import model
from tiny_bank import IDS, bank_of, fill, logits

from tmem.testing import assert_close

NAN = float("nan")


def backward(network, bank, slots, **options):
    with bank.route(slots, **options):
        logits(network, IDS).square().mean().backward()


def used(train_a=False):
    """A bank whose gradients are NaN in memory and zero in truth, as after a step; its model and two slots."""
    network = model()
    bank = bank_of(network, train_a=train_a)
    a, b = bank.alloc(rank=3), bank.alloc()
    fill(bank, a, b)
    for site in bank.sites:
        site.bt_grad[a, :3], site.bt_grad[b] = NAN, NAN
        if train_a:
            site.a_grad[a, :3], site.a_grad[b] = NAN, NAN
    bank.zero_grad([a, b])
    return network, bank, a, b


def test_the_first_backward_writes_and_the_next_adds():
    for train_a in (False, True):
        network, bank, a, b = used(train_a)
        backward(network, bank, [a, -1, b])
        once = bank.grad.clone()
        backward(network, bank, [a, -1, b])
        assert once.isfinite().all() and once.any() and torch.equal(bank.grad, 2 * once)


def test_slots_that_some_layers_or_batches_reach_alone():
    """One slot after another, then both: the second batch finds one with a gradient and one without."""
    network, bank, a, b = used()
    backward(network, bank, [a, a, a])
    backward(network, bank, [a, b, b])
    mixed = bank.grad.clone()
    network, bank, a, b = used()
    bank.grad.zero_()
    for slots in ([a, a, a], [a, b, b]):
        backward(network, bank, slots)
    assert mixed.isfinite().all() and torch.equal(mixed, bank.grad)


def test_a_row_without_tokens_keeps_its_zero():
    network, bank, a, b = used()
    backward(network, bank, [a, b, -1], lengths=[IDS.shape[1], 0, IDS.shape[1]])
    assert bank.grad[a].any() and bank.grad.isfinite().all() and not bank.grad[b].any()


def test_a_step_takes_what_no_backward_reached_as_zero():
    network, bank, a, b = used()
    before = bank.param[b].clone()
    assert not bank.step([b]).any() and torch.equal(bank.param[b], before)
    backward(network, bank, [a, -1, -1])
    norms = bank.step([a])
    assert norms.isfinite().all() and norms.all() and not bank.grad.any()


def test_a_new_tenant_finds_nothing():
    network, bank, a, b = used()
    backward(network, bank, [a, -1, b])
    bank.step([a, b])
    kept = bank.snapshot(b)
    bank.free(a)
    c = bank.alloc()  # of a larger rank than the one before
    bank.restore(b, kept)
    assert not bank.grad[c].any() and not bank.grad[b].any()


def test_a_step_knows_its_norm_without_reading_the_gradient_for_it():
    """Over batches, layers and tenants; what somebody writes into `grad` counts all the same."""
    for train_a in (False, True):
        network, bank, a, b = used(train_a)
        kept = [x for site in bank.sites for x in (site.bt_squares, site.a_squares) if x is not None]
        assert all(x.is_contiguous() for x in kept), "a kernel would write a copy, which is copied back"
        for slots in ([a, a, a], [a, b, b], [a, -1, b]):
            backward(network, bank, slots)
        unread = bank.step([a, b])
        network, bank, a, b = used(train_a)
        for slots in ([a, a, a], [a, b, b], [a, -1, b]):
            backward(network, bank, slots)
        want = bank.grad[[a, b]].double().norm(dim=1)
        assert_close("norms", unread, want, 1e-6)
        bank.grad[a] *= 3
        assert_close("a gradient that was written", bank.step([a]), 3 * want[:1], 1e-6)
        backward(network, bank, [a, a, a], lengths=[2, 0, 0])
        bank._grad[a] *= 3  # in secret
        want = bank._grad[a].double().norm()[None] / 3
        assert_close("a gradient that nobody was shown", bank.step([a]), want, 1e-6)
        bank.free(a)
        assert not bank.step([bank.alloc()]).any()
