"""The episode loop: what an episode gets alone it gets among others, bit for bit; and every part of the loop."""

import dataclasses
import math
import os
import re

import peft
import pytest
import tiny
import torch
import transformers
from tiny import FAMILIES, Letters, model, pairs
from tiny_agent import CONFIG, EPISODES, agent_of
from wrong import average_before_floor

import tmem.agent.agent as agent_module
import tmem.agent.loop as loop
from tmem.adapters.peft import load_adapter, save_adapter
from tmem.agent.agent import Agent
from tmem.agent.config import AdapterConfig, agent_config, read
from tmem.agent.decode import Generation, decode
from tmem.agent.learn import Learned, learn, trunk_layers
from tmem.agent.loop import run
from tmem.agent.passages import cut
from tmem.agent.probe import probe, speakers
from tmem.agent.sampling import uniforms
from tmem.agent.scored import FLOOR, floored, likelihoods, log_probabilities
from tmem.agent.teach import Lesson
from tmem.agent.write import Written, list_prompt, parse, render
from tmem.episode import Episode, Pair, Question
from tmem.models import forward as fw
from tmem.models import loading
from tmem.models.chat import Chat
from tmem.rl.trainer import Trainer
from tmem.testing import assert_close
from tmem.words import identity

EVERY = [(family, torch.float32) for family in FAMILIES] + [("llama", torch.bfloat16), ("gemma", torch.bfloat16)]


# learning --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, dtype", EVERY)
def test_an_episode_learns_the_same_bits_alone_and_among_others(family, dtype):
    jobs = {0: pairs(6, "a"), 1: pairs(3, "bb"), 2: pairs(9, "c"), 3: pairs(1)}
    together = agent_of(family=family, dtype=dtype)
    slots = {k: together.bank.alloc() for k in jobs}
    results = learn(together.model, together.bank, [(slots[k], p) for k, p in jobs.items()], together.chat, CONFIG.learn)
    for (k, job), result in zip(jobs.items(), results):
        alone = agent_of(family=family, dtype=dtype)
        for _ in range(4 - k):  # another slot than among the others
            slot = alone.bank.alloc()
        (single,) = learn(alone.model, alone.bank, [(slot, job)], alone.chat, CONFIG.learn)
        assert torch.equal(alone.bank.param[slot], together.bank.param[slots[k]]), k
        assert single == result
        assert single.loss_after < single.loss_before


@pytest.mark.parametrize("family", FAMILIES)
def test_an_idle_slot_does_not_change_by_one_bit(family):
    agent = agent_of(family=family)
    idle, busy = agent.bank.alloc(weight_decay=0.5), agent.bank.alloc()
    learn(agent.model, agent.bank, [(idle, pairs(3))], agent.chat, dataclasses.replace(CONFIG.learn, weight_decay=0.5))
    before = agent.bank.snapshot(idle)
    learn(agent.model, agent.bank, [(busy, pairs(5)), (idle, [])], agent.chat, CONFIG.learn)
    after = agent.bank.snapshot(idle)
    for name in ("param", "m", "v"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    assert after.step == before.step


def test_a_nan_in_one_episode_leaves_its_neighbours_untouched_and_is_rolled_back():
    clean, dirty = agent_of(), agent_of()
    for agent in (clean, dirty):
        for _ in range(2):
            agent.bank.alloc()
    dirty.bank.param[0] = float("nan")
    before = dirty.bank.snapshot(0)
    jobs = [(0, pairs(3)), (1, pairs(4, "b"))]
    learn(clean.model, clean.bank, jobs, clean.chat, CONFIG.learn)
    first, second = learn(dirty.model, dirty.bank, jobs, dirty.chat, CONFIG.learn)
    assert torch.equal(clean.bank.param[1], dirty.bank.param[1])
    assert second.kept and not first.kept and first.reason == "not finite"
    assert torch.equal(dirty.bank.param[0].isnan(), before.param.isnan())


def test_a_write_that_blows_up_is_rolled_back():
    agent = agent_of()
    slot = agent.bank.alloc()
    learn(agent.model, agent.bank, [(slot, pairs(3))], agent.chat, CONFIG.learn)
    before = agent.bank.snapshot(slot)
    for options, reason in (({"lr": 50.0, "epochs": 1}, "the loss rose"), ({"norm_cap": 1e-6}, "above")):
        (result,) = learn(
            agent.model, agent.bank, [(slot, pairs(4, "q"))], agent.chat, dataclasses.replace(CONFIG.learn, **options)
        )
        assert not result.kept and reason in result.reason
        assert torch.equal(agent.bank.param[slot], before.param) and torch.equal(agent.bank.m[slot], before.m)


def test_the_trunk_may_run_once():
    """The same update with every layer run in every pass gives the same bits."""
    fast, slow = agent_of(), agent_of()
    for agent in (fast, slow):
        agent.bank.alloc()
    assert fast.bank.first_layer == 2
    learn(fast.model, fast.bank, [(0, pairs(5))], fast.chat, CONFIG.learn)
    slow.bank.first_layer = 0
    learn(slow.model, slow.bank, [(0, pairs(5))], slow.chat, CONFIG.learn)
    assert torch.equal(fast.bank.param[0], slow.bank.param[0])


def test_with_dropout_no_layer_is_run_once_for_all_epochs():
    agent = agent_of()
    agent.bank.alloc()
    assert trunk_layers(agent.model, agent.bank) == 2
    agent.model.train()
    assert trunk_layers(agent.model, agent.bank) == 2
    agent.model.config.attention_dropout = 0.1
    assert trunk_layers(agent.model, agent.bank) == 0
    learn(agent.model, agent.bank, [(0, pairs(3))], agent.chat, CONFIG.learn)
    agent.model.eval()
    assert trunk_layers(agent.model, agent.bank) == 2


def test_a_slot_that_has_learned_enough_stops_and_the_others_go_on():
    agent, alone = agent_of(), agent_of()
    quick = dataclasses.replace(CONFIG.learn, epochs=30, target=3.0)
    slots = [agent.bank.alloc(), agent.bank.alloc(), agent.bank.alloc()]
    jobs = [(0, pairs(2)), (1, pairs(9, "b")), (2, pairs(1, "cc"))]
    results = learn(agent.model, agent.bank, jobs, agent.chat, quick)
    steps = [int(agent.bank.step_count[s]) for s in slots]
    assert len(set(steps)) > 1 and all(0 < s < 30 * 3 for s in steps)
    assert all(r.loss_after < 3.0 for r in results)
    for slot, job in jobs:
        alone.bank.alloc()
        assert (learn(alone.model, alone.bank, [(slot, job)], alone.chat, quick)) == [results[slot]]
        assert torch.equal(alone.bank.param[slot], agent.bank.param[slot])


def test_two_jobs_for_one_slot_are_refused():
    agent = agent_of()
    slot = agent.bank.alloc()
    with pytest.raises(ValueError, match="a slot appears in two jobs"):
        learn(agent.model, agent.bank, [(slot, pairs(1)), (slot, pairs(1))], agent.chat, CONFIG.learn)


# decoding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, dtype", EVERY)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_episode_decodes_the_same_alone_and_among_others(family, dtype, temperature):
    agent = agent_of(family=family, dtype=dtype)
    for s in range(3):
        learn(agent.model, agent.bank, [(agent.bank.alloc(), pairs(3, str(s)))], agent.chat, CONFIG.learn)
    prompts = [agent.chat.prompt("x" * n + "?") for n in (1, 3, 20, 21, 22, 45, 230, 301, 490, 600)]
    slots = [0, 1, 2, 0, -1, 1, 2, -1, 0, 1]
    keys = [f"k{i}" for i in range(10)]
    options = dict(bank=agent.bank, end=0, max_new=12, temperature=temperature)
    together = decode(agent.model, prompts, slots=slots, keys=keys, **options)
    for i in range(10):
        (alone,) = decode(agent.model, [prompts[i]], slots=[slots[i]], keys=[keys[i]], **options)
        assert alone == together[i], i
    assert len({tuple(g.ids) for g in together}) > 3


@pytest.mark.parametrize("family, dtype", EVERY)
def test_what_begins_several_prompts_is_read_once_and_says_the_same(family, dtype, monkeypatch):
    agent = agent_of(family=family, dtype=dtype)
    for s in range(2):
        learn(agent.model, agent.bank, [(agent.bank.alloc(), pairs(3, str(s)))], agent.chat, CONFIG.learn)
    texts = ["a text of some length. " * 14, "another " * 11, "short"]
    prompts = [agent.chat.prompt(f"{texts[i % 3]}\n\n{'why ' * n}?") for i, n in enumerate((1, 3, 40, 21, 22, 5, 1, 9))]
    begins = [len(os.path.commonprefix([agent.chat.prompt(texts[i % 3]), prompts[i]])) for i in range(8)]
    begins[5] = 0  # one is read in one piece, among the others
    begins[6] = len(prompts[6]) - 1
    slots = [0, 1, -1, 0, 1, 1, 1, 0]
    options = dict(bank=agent.bank, end=-1, max_new=12)
    tokens, layers = [], fw.layers

    def counting(model, hidden, *args, **how):
        tokens.append(hidden.shape[0] * hidden.shape[1])
        return layers(model, hidden, *args, **how)

    monkeypatch.setattr(fw, "layers", counting)
    whole = decode(agent.model, prompts, slots=slots, **options)
    read_whole = sum(tokens)
    tokens.clear()
    together = decode(agent.model, prompts, slots=slots, begins=begins, **options)
    read_begun = sum(tokens)
    monkeypatch.undo()
    assert read_begun < read_whole
    for i in range(8):
        (alone,) = decode(agent.model, [prompts[i]], slots=[slots[i]], begins=[begins[i]], **options)
        assert alone == together[i], i
        if dtype == torch.float32:  # in bf16 the order of sums may turn a near tie
            assert together[i].ids == whole[i].ids, i
            assert together[i].logprobs == pytest.approx(whole[i].logprobs, abs=1e-4), i
    at_fixed = decode(agent.model, prompts, slots=slots, begins=begins, fixed=True, **options)
    if dtype == torch.float32:
        assert [g.ids for g in at_fixed] == [g.ids for g in together]
    assert len({tuple(g.ids) for g in together}) > 3
    for wrong in (-1, len(prompts[0])):
        with pytest.raises(ValueError, match="a beginning of .* tokens in a prompt of"):
            decode(agent.model, prompts[:1], slots=[0], begins=[wrong], **options)


@pytest.mark.parametrize("max_rows", [96, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bank_too", [True, False])
def test_beginnings_are_told_apart_by_where_they_end(bank_too, temperature, max_rows, monkeypatch):
    """Equal prompts before another one, one prompt with two beginnings of a bucket: rows of the cache must not be mixed up."""
    import tmem.agent.decode as decoding

    agent = agent_of()
    if bank_too:
        learn(agent.model, agent.bank, [(agent.bank.alloc(), pairs(3, "0"))], agent.chat, CONFIG.learn)
    first, second = [5 + i % 100 for i in range(30)], [90 - i % 50 for i in range(40)]
    prompts, begins = [first, first, second, first, second], [20, 20, 25, 25, 20]
    monkeypatch.setattr(decoding, "MAX_ROWS", max_rows)

    def said(rows: list[int]) -> list[Generation]:
        return decode(
            agent.model, [prompts[i] for i in rows], bank=agent.bank if bank_too else None,
            slots=[0] * len(rows) if bank_too else None, end=-1, max_new=6,
            begins=[begins[i] for i in rows], temperature=temperature, keys=[str(i) for i in rows],
        )  # fmt: skip

    assert said([0, 1, 2, 3, 4]) == [said([i])[0] for i in range(5)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bank_too", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_steps_at_fixed_addresses_decode_the_same(family, bank_too, temperature):
    """What a GPU captures as a graph: the same tokens, whatever was decoded before in the same memory."""
    agent = agent_of(family=family)
    for s in range(3):
        learn(agent.model, agent.bank, [(agent.bank.alloc(), pairs(3, str(s)))], agent.chat, CONFIG.learn)
    options = dict(bank=agent.bank, max_new=12, temperature=temperature)
    owner = agent.bank if bank_too else agent.model
    for lengths in ((1, 3, 20, 21, 22, 30, 45, 9, 11), (2, 40), (1, 3, 20, 21, 22)):
        prompts = [agent.chat.prompt("x" * n + "?") for n in lengths]
        slots = [i % 4 - 1 for i in range(len(prompts))] if bank_too else None
        keys = [f"k{i}" for i in range(len(prompts))]
        options["end"] = -1
        ends = [g.ids[4] for g in decode(agent.model, prompts, slots=slots, keys=keys, **options)]
        options["end"] = max(ends, key=ends.count)  # some rows end there, and leave
        want = decode(agent.model, prompts, slots=slots, keys=keys, fixed=False, **options)
        got = decode(agent.model, prompts, slots=slots, keys=keys, fixed=True, **options)
        assert any(g.finished for g in want)
        for a, b in zip(got, want):
            assert a.ids == b.ids and a.finished == b.finished
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        kept = dict(vars(owner)["_decode_steps"])
        assert {rows for rows, _ in kept} <= {4, 8, 16} and {columns for _, columns in kept} == {512}
    assert all(vars(owner)["_decode_steps"][key] is steps for key, steps in kept.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_matches_transformers_generate(family):
    network = model(family)
    ids = torch.randint(1, 160, (1, 11))
    want = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=None)
    (got,) = decode(network, [ids[0].tolist()], end=-1, max_new=10)
    assert got.ids == want[0, 11:].tolist()
    full = network(input_ids=want).logits[0, 10:-1].log_softmax(-1)
    assert torch.tensor(got.logprobs).allclose(full.gather(-1, want[0, 11:, None])[:, 0], atol=1e-4)


def test_sampling_follows_the_distribution_and_the_key():
    assert (uniforms("a", 5) == uniforms("a", 9)[:5]).all() and uniforms("a", 1) != uniforms("b", 1)
    network = model(num_hidden_layers=1)
    prompt = [5, 6, 7]
    p = network(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    n = 4000
    found = decode(network, [prompt] * n, end=0, max_new=1, temperature=1.0, keys=[str(i) for i in range(n)])
    counts = torch.bincount(torch.tensor([g.ids[0] for g in found]), minlength=160) / n
    assert (counts - p).abs().max() < 4 * (p.max() / n) ** 0.5
    with pytest.raises(ValueError, match="one noise key per prompt"):
        decode(network, [prompt], end=0, max_new=1, temperature=1.0)
    with pytest.raises(ValueError, match="a prompt is empty"):
        decode(network, [[]], end=0, max_new=1)


def test_buckets_cover_every_length():
    sizes = [fw.bucket(n) for n in range(1, 2000)]
    assert sizes == sorted(sizes) and all(s >= n for n, s in enumerate(sizes, 1)) and sizes[0] == 16


# writing ---------------------------------------------------------------------------------------------------------------


def test_parse_reads_back_what_render_writes():
    assert parse(render(pairs(4))) == Written(pairs=pairs(4))


@pytest.mark.parametrize("under_delta", [False, True])
def test_passages_that_are_due_together_are_learned_in_one_update(monkeypatch, under_delta):
    """Two a time: what is learned is what their own writes hold, the later answer to a question that both answer."""
    monkeypatch.setattr(agent_module, "parse", lambda text, **_: Written([Pair(f"who {text[:5]}?", text[5:9] or "x")], empty=1))
    write = dataclasses.replace(CONFIG.write, window=30, under_delta=under_delta)
    agent = agent_of(config=dataclasses.replace(CONFIG, write=write, learn=dataclasses.replace(CONFIG.learn, every=2)))
    (rollout,) = run(agent, EPISODES[2:], ["k"], answering="none")
    parts = cut(agent.chat, EPISODES[2].chunks, 30)
    assert len(parts) > 2 and [e.passage for e in rollout.log] == [
        "\n\n".join(parts[j : j + 2]) for j in range(0, len(parts), 2)
    ]
    by_hand, slot, lesson = agent_of(config=agent.config), None, Lesson()
    slot = by_hand.bank.alloc()
    for j in range(0, len(parts), 2):
        two = parts[j : j + 2]
        drafts = by_hand.write(two, [slot] * len(two), keys=[f"k/write{j + k}" for k in range(len(two))])
        pairs = {identity(p.question): p for d in drafts for p in d.written.pairs}
        by_hand.teach([slot], [list(pairs.values())], [lesson])
        assert rollout.log[j // 2].written.empty == len(two)
        assert rollout.log[j // 2].written.pairs == list(pairs.values())
    assert torch.equal(by_hand.bank.snapshot(slot).param, rollout.delta.param)


@pytest.mark.parametrize(
    "text, finished, want",
    [
        ("", True, Written()),
        ("I am a helpful assistant.", True, Written(malformed=1)),
        ("Q: a?\nA: b\nQ: c?", True, Written([Pair("a?", "b")], malformed=1)),
        ("Q: a?\nA: b\nQ: c?\nA: d and th", False, Written([Pair("a?", "b")], malformed=2)),
        ("Q: a?\nQ: b?\nA: c", True, Written([Pair("b?", "c")], malformed=1)),
        ("A: b\nQ: a?\nA:", True, Written(malformed=1, empty=1)),
        ("Q: a?\nA: b\nQ: A ?\nA: B.", True, Written([Pair("a?", "b")], duplicates=1)),
        ("Q: a?\nA: b\nQ: a?\nA: c", True, Written([Pair("a?", "c")], conflicts=1)),
    ],
)
def test_parse_drops_and_counts(text, finished, want):
    assert parse(text, finished=finished) == want


def test_parse_keeps_at_most_the_limit():
    assert parse(render(pairs(9)), limit=4).malformed == 5


def test_control_tokens_in_a_text_stay_text():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(loading.resolve(), local_files_only=True)
    chat, text = Chat(tokenizer), "a<|im_end|>\n<|im_start|>user <repo_name> b"
    control = {i for i, t in tokenizer.added_tokens_decoder.items()}
    assert control & set(chat.prompt("")) and not control & set(chat.plain(text))
    assert chat.text(chat.plain(text)) == text and chat.count(text) == len(chat.plain(text))


def test_probes_ask_otherwise_and_about_somebody_else():
    job = Pair("What is Ada's job?", "pilot")
    people = speakers("Date: 3 May\nAda: Hey, I fly.\nBen: My word. As I see.", [job, Pair("Where does Cem live?", "Ulm")])
    assert people == ["Ada", "Ben", "Cem"]
    p = probe(job, people)
    assert p.paraphrase == "Please tell me Ada's job." and p.other == "What is Ben's job?"
    p = probe(Pair("Where does Ada live?", "Ulm"), ["Ada"])
    assert p.paraphrase == "I would like to know: where does Ada live?" and p.other is None


def test_passages_hold_whole_chunks_up_to_the_window():
    chat = Chat(Letters())
    assert cut(chat, ["a" * 30, "b" * 30, "c" * 30], 64) == ["a" * 30 + "\n\n" + "b" * 30, "c" * 30]
    assert cut(chat, [], 64) == [] and cut(chat, ["", "  "], 64) == []
    long = "\n".join(["d" * 30] * 5)
    found = cut(chat, [long], 64)
    assert "\n".join(found) == long and all(len(s) <= 64 for s in found)
    assert cut(chat, ["e" * 100], 64) == ["e" * 50] * 2
    words = " ".join(["word"] * 60)  # one line, five times the window: nothing of it is lost
    found = cut(chat, [words], 64)
    assert all(len(s) <= 64 for s in found) and "".join(found).replace("\n", "") == words


def test_every_part_of_a_dated_chunk_begins_with_its_date():
    """What was said "yesterday" is told in the middle of a long session as well."""
    chat, date = Chat(Letters()), "DATE: 2023/05/20 (Sat)"
    said = ["user: " + "a" * 20, "user: " + "b" * 60, "user: c"]
    found = cut(chat, ["\n".join([date, *said])], 64)
    assert len(found) > 2 and all(s.startswith(date + "\n") and len(s) <= 64 for s in found)
    words = "".join(s.removeprefix(date) for s in found).replace("\n", "")
    assert re.sub("user: ?", "", words) == re.sub("user: ?", "", "".join(said)), "nothing but date and role is said again"
    assert cut(chat, found, 64) == found
    assert cut(chat, ["Petra: hello\n" + "d" * 60], 64)[1] == "d" * 60, "a speaker is no date"


# the loop --------------------------------------------------------------------------------------------------------------


def test_the_loop_gives_an_episode_the_same_life_alone_and_among_others():
    keys = ["k0", "k1", "k2"]
    together = run(agent_of(slots=3), EPISODES, keys, temperature=1.0, trace=True)
    two_slots = run(agent_of(slots=2), EPISODES, keys, temperature=1.0, trace=True)
    for i, r in enumerate(together):
        (alone,) = run(agent_of(slots=1), EPISODES[i : i + 1], keys[i : i + 1], temperature=1.0, trace=True)
        for other in (alone, two_slots[i]):
            assert other.answers == r.answers
            assert [a.generation for a in other.actions] == [a.generation for a in r.actions]
    assert [len(r.log) for r in together] == [len(cut(Chat(Letters()), e.chunks, 80)) for e in EPISODES]


@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_writes_that_depend_on_no_delta_are_the_same_whenever_they_are_made(monkeypatch, at_once):
    config = dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, under_delta=False))
    monkeypatch.setattr(loop, "WRITES", at_once)
    monkeypatch.setattr(agent_module, "parse", lambda text, **_: Written([Pair(f"who {text[:5]}?", "me")]))
    agent = agent_of(slots=3, config=config)
    rollouts = run(agent, EPISODES, ["k0", "k1", "k2"], temperature=1.0, trace=True)
    assert max(len(r.log) for r in rollouts) > 1
    for r, key in zip(rollouts, ("k0", "k1", "k2")):
        texts = cut(agent.chat, r.episode.chunks, 80)
        assert [e.passage for e in r.log] == texts
        prompts = [agent.chat.prompt(list_prompt(t)) for t in texts]
        found = decode(
            agent.model, prompts, end=agent.chat.ends, max_new=40, temperature=1.0,
            keys=[f"{key}/write{j}" for j in range(len(texts))],
        )  # fmt: skip
        writes = [a for a in r.actions if a.kind == "write"]
        assert [a.generation for a in writes] == found and [a.prompt for a in writes] == prompts
        assert [(e.read, e.tokens) for e in r.log] == [(len(p), len(g.ids)) for p, g in zip(prompts, found)]
        (answer,) = [a for a in r.actions if a.kind == "answer"]
        assert answer.delta is not None and answer.writes == len(texts)


def test_a_scored_answer_is_as_probable_as_the_model_says():
    """Against the chain rule, one forward pass a token without padding or neighbours; several right answers add up."""
    agent = agent_of(slots=3)
    for i in range(2):
        agent.bank.alloc()
        learn(agent.model, agent.bank, [(i, pairs(2 + i, "n"))], agent.chat, agent.config.learn)
    asked = [("what is nothing?", "a0", 0), ("what is it, tell me at length?", "bcd", 1), ("who?", "a0", -1)]
    found = log_probabilities(agent, *zip(*asked))
    for values, (prompt, answer, slot) in zip(found, asked):
        start, said = agent.chat.prompt(prompt), agent.chat.answer(answer)
        assert len(values) == len(said)
        for n, value in enumerate(values):
            with torch.no_grad(), agent.bank.route([slot], learn=False):
                logits = agent.model(torch.tensor([start + said[:n]])).logits[0, -1]
            assert math.isclose(value, float(logits.double().log_softmax(-1)[said[n]]), rel_tol=1e-4)
    assert log_probabilities(agent, *zip(*asked[1:2])) == found[1:2]
    for slot in range(2):
        agent.bank.free(slot)
    both = [
        dataclasses.replace(EPISODES[0], questions=(dataclasses.replace(EPISODES[0].questions[0], answers=a),))
        for a in (("a", "b"), ("a",), ("b",))
    ]
    either, first, second = (r.likely[0] for r in run(agent, both, ["k"] * 3, answering="scored"))
    assert math.isclose(either.right, first.right + second.right, rel_tol=1e-6) and either.right > 0
    assert either.logp == max(first.logp, second.logp)


def test_the_floor_stands_on_each_token_of_an_answer():
    """By hand; and of several right answers the best counts, of none the floor."""
    assert FLOOR == -4.0 and floored([-1.0, -9.0, -2.0]) == (-1.0 - 4.0 - 2.0) / 3
    assert floored([-1.0, -9.0, -2.0]) != average_before_floor.floored([-1.0, -9.0, -2.0]) == -4.0
    assert floored([-0.5, -1.5]) == -1.0 == average_before_floor.floored([-0.5, -1.5])
    agent, question = agent_of(slots=1), EPISODES[0].questions[0]
    slot, settings = agent.bank.alloc(), dataclasses.replace(CONFIG.learn, epochs=60)
    learn(agent.model, agent.bank, [(slot, [Pair(question.text, "bc")])], agent.chat, settings)
    asked = [dataclasses.replace(question, answers=a) for a in (("a", "bcd", "a"), ("a",), ("bcd",), ())]
    both, one, other, none = likelihoods(agent, asked, [slot] * 4)
    assert FLOOR <= one.logp < other.logp == both.logp and none == (0.0, FLOOR)
    tokens = log_probabilities(agent, [agent.asked(question.text)], ["bcd"], [slot])[0]
    assert min(tokens) < FLOOR < max(tokens) and len(tokens) == 4
    assert other.logp == sum(max(t, -4.0) for t in tokens) / 4
    assert [likelihoods(agent, [q], [slot])[0] for q in asked] == [both, one, other, none]


def test_every_action_carries_the_delta_that_produced_it(monkeypatch):
    """Scoring an action again under its snapshot gives the log-probabilities it was sampled with."""
    agent = agent_of(slots=1)
    with monkeypatch.context() as patch:
        patch.setattr(agent_module, "parse", lambda *_, **__: Written([Pair("who?", "me")]))
        (rollout,) = run(agent, EPISODES[2:], ["k"], temperature=1.0, trace=True)
    deltas = [a.delta for a in rollout.actions]
    assert deltas[0] is None and all(d is not None for d in deltas[1:])
    for action in rollout.actions:
        slot = agent.bank.alloc()
        if action.delta is not None:
            agent.bank.restore(slot, action.delta)
        ids = action.prompt + action.generation.ids
        with agent.bank.route([slot], learn=False), torch.no_grad():
            logp = agent.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        agent.bank.free(slot)
        n = len(action.prompt)
        again = logp[torch.arange(n - 1, len(ids) - 1), torch.tensor(action.generation.ids)]
        assert torch.tensor(action.generation.logprobs).allclose(again, atol=1e-4)


def test_what_a_rolled_back_write_learned_is_not_rehearsed(monkeypatch):
    agent = agent_of(slots=1, config=dataclasses.replace(CONFIG, learn=dataclasses.replace(CONFIG.learn, rehearse=8)))
    jobs = []

    def learned(model, bank, batch, *_):
        jobs.extend([p.question for p in pairs] for _, pairs in batch)
        return [Learned(1.0, 2.0, 0.0, len(jobs) != 2, "the loss rose") for _ in batch]

    monkeypatch.setattr(agent_module, "parse", lambda *_, **__: Written([Pair(f"who {len(jobs)}?", "me")]))
    monkeypatch.setattr(agent_module, "learn", learned)
    episode = Episode("e", EPISODES[2].chunks * 2, ((),) * 8, EPISODES[2].questions)
    (rollout,) = run(agent, [episode], ["k"])
    assert jobs[:3] == [["who 0?"], ["who 0?", "who 1?"], ["who 0?", "who 2?"]]
    assert [p.question for p in rollout.pairs[:3]] == ["who 0?", "who 1?", "who 2?"]


def test_slots_are_given_back_even_when_an_episode_fails():
    agent = agent_of(slots=2)
    broken = dataclasses.replace(EPISODES[0], questions=(Question("q", None, ("a",), "x"),))
    with pytest.raises(TypeError):
        run(agent, [broken], ["k"])
    assert not any(agent.bank.used)


# presets ---------------------------------------------------------------------------------------------------------------


def test_presets_are_complete_and_typos_are_named():
    for name in ("careful", "default", "long", "paper", "search", "stream", "study", "verifiers"):
        agent_config(name)
    assert agent_config("paper").adapter == AdapterConfig(6, ("gate_proj", "up_proj", "down_proj"), 4, "sigma", False, "sgd")
    with pytest.raises(ValueError, match="no preset 'papper'; expected one of careful, default, long, paper, search, stream"):
        read("papper")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("[learn]\nlrr = 1", "\\[learn\\] has no setting 'lrr'"),
        ("[lern]\nlr = 1", "has \\[lern\\]; expected the tables adapter"),
        ("[learn]\nepochs = 0", "epochs: expected 1 or more, got 0"),
        ("[learn]\nlr = 'high'", "lr: expected a number, got 'high'"),
        ("[write]\nwindow = 1.5", "window: expected a whole number"),
        ("[train]\nreward = 'fun'", "reward: expected f1 or em"),
        ("[train]\nrl_group = 1", "rl_group: expected 2 or more"),
        ("[learn", "not valid TOML"),
    ],
)
def test_a_preset_that_means_nothing_is_refused_before_any_work(tmp_path, text, sentence):
    (tmp_path / "p.toml").write_text('extends = "stream"\n' + text)
    with pytest.raises(ValueError, match=sentence):
        Trainer(tmp_path / "p.toml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# families of models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_pieces_together_are_the_model(family, dtype, tolerance):
    network = model(family, dtype=dtype)
    norms = [p for name, p in network.named_parameters() if "norm" in name]
    for i, weight in enumerate(norms):  # fresh ones are all ones or, in Gemma, zeros
        weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i), dtype=dtype)
    ids = torch.randint(1, 160, (4, 23), generator=torch.Generator().manual_seed(0))
    want = network(input_ids=ids).logits
    hidden = fw.layers(network, fw.embed(network, ids), torch.arange(23)[None], None)
    assert norms and fw.logits(network, hidden).dtype == dtype
    assert_close("logits", fw.logits(network, hidden), want, tolerance)
    assert_close("at positions", fw.token_logits(network, ids, [2, 0], [22, 5]), want[[2, 0], [22, 5]], tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_learned_is_a_peft_adapter_of_its_family(family, tmp_path):
    agent, ids = agent_of(family=family), torch.tensor([[5, 90, 33, 7, 120]])
    slot = agent.bank.alloc()
    (learned,) = learn(agent.model, agent.bank, [(slot, pairs(4))], agent.chat, CONFIG.learn)
    assert learned.kept and learned.loss_after < learned.loss_before
    save_adapter(agent.bank, slot, tmp_path / "m")
    again = load_adapter(agent.bank, tmp_path / "m")
    assert torch.equal(agent.bank.param[again], agent.bank.param[slot])
    plain = agent.model(input_ids=ids).logits
    with agent.bank.route([slot], learn=False):
        ours = agent.model(input_ids=ids).logits
    theirs = peft.PeftModel.from_pretrained(model(family), tmp_path / "m")(input_ids=ids).logits
    assert_close("logits in PEFT", theirs, ours, 1e-5)
    assert (ours - plain).norm() > 1e-2 * plain.norm()


@pytest.mark.parametrize(
    "name, sizes, sentence",
    [
        ("Gemma2", {}, "is of family 'gemma2'; choose"),
        ("Gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0, which its family's code"),
        ("Gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("Gemma3", {"use_bidirectional_attention": True}, "with bidirectional attention"),
        ("Gemma3", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "positions that depend on the batch's length"),
        ("Gemma3", {"sliding_window": None}, "layer_types 'sliding_attention'"),
        ("Cohere", {}, "is of family 'cohere'; choose"),
        ("Llama", {"sliding_window": 64}, "is of family 'llama' with a sliding window of 64 tokens, which its family's code"),
        ("Mistral", {"sliding_window": 0}, "a sliding window of 0 tokens, expected 1 or more"),
        ("Mistral", {"layer_types": ["full_attention"] * 4}, "layer_types 'full_attention'\\), which its family's code"),
        ("Gemma", {"use_bidirectional_attention": True}, "is of family 'gemma' with bidirectional attention"),
        ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "positions that depend on the batch's length"),
        ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "positions that depend on the batch's length"),
        ("Llama", {"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}}, "scaled by 2.0 and no rope_type"),
        ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5, which its family's code does not read"),
        ("Qwen3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ("Gemma", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ("Llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("Mistral", {"sliding_window": None, "num_local_experts": 8}, "num_local_experts 8"),
        ("Qwen2", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "layer_types 'sliding_attention'"),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused(name, sizes, sentence):
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    sizes = {**tiny._SIZES, "head_dim": 16, **sizes}
    network = getattr(transformers, f"{name}ForCausalLM")(config(**sizes))
    with pytest.raises(ValueError, match=sentence):
        Agent.build(network, Letters(), CONFIG, 2)


def test_a_model_whose_attention_reads_masks_otherwise_is_refused():
    """Eager attention adds a mask to the scores: of True and False it would hide nothing."""
    network = tiny.model()
    network.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attention by 'eager', which reads masks otherwise; expected 'sdpa'"):
        decode(network, [[1, 2, 3]], end=0, max_new=2)
