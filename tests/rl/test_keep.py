"""What training is to leave as it was: plain requests, and the model's own answers to them."""

import dataclasses

import torch
from tiny import Letters, model
from tiny_agent import CONFIG, TRAIN, agent_of
from tiny_run import lines, start

from tmem.models import forward as fw
from tmem.models.chat import Chat
from tmem.rl import keep, neutral, supervised
from tmem.rl.low_rank import LowRank
from tmem.tasks import stream
from tmem.words import normalise


def test_no_request_is_one_that_measures_what_was_lost():
    asked = [normalise(text) for text in keep.requests()]
    assert len(set(asked)) == len(asked) > 200
    measured = [normalise(question) for question, _ in neutral.QUESTIONS]
    assert not [text for text in asked if any(question in text for question in measured)]


def test_what_is_kept_is_what_the_model_says_greedily():
    network = model()
    chat = Chat(Letters(), network)
    found = keep.kept(network, chat)
    assert [e.prompt for e in found] == [chat.prompt(text) for text in keep.requests()]
    for example in found[:5]:
        assert 0 < len(example.answer) <= keep.MAX_NEW
        ids = torch.tensor([example.prompt + example.answer])
        length = ids.shape[1]
        hidden = fw.layers(network, fw.embed(network, ids), torch.arange(length)[None], None)
        likeliest = fw.logits(network, hidden)[0].argmax(-1).tolist()
        assert likeliest[len(example.prompt) - 1 : -1] == example.answer


def test_each_step_takes_some_of_them_and_the_same_when_asked_again():
    examples = [supervised.Example([i], [i]) for i in range(20)]
    steps = [keep.drawn(examples, 0, step) for step in range(30)]
    assert all(len({e.prompt[0] for e in step}) == keep.AT_ONCE for step in steps)
    assert {e.prompt[0] for step in steps for e in step} == set(range(20))
    assert steps[3] == keep.drawn(examples, 0, 3) != keep.drawn(examples, 1, 3)
    assert keep.drawn([], 0, 0) == []


def test_the_model_without_the_adapter_says_what_an_adapter_s_training_keeps(tmp_path, monkeypatch):
    """Not the adapter that training goes on from, which may have forgotten it."""
    said, begun = [], []
    monkeypatch.setattr(keep, "kept", lambda network, chat: said.append([p.clone() for p in network.parameters()]) or [])

    def low_rank(network, *rest):
        begun.append([p.clone() for p in network.parameters()])
        return LowRank(network, *rest)

    monkeypatch.setattr("tmem.rl.trainer.LowRank", low_rank)
    start(tmp_path / "run", extra='policy = "lora"\nwarm_keep = 0.5', warm_steps=1, rl_steps=0, control_steps=0).run()
    assert len(said) == len(begun) == 1
    assert all(torch.equal(x, y) for x, y in zip(said[0], begun[0]))


def test_training_with_them_forgets_less():
    lost = {}
    for weight in (0.0, 4.0):
        agent = agent_of(config=CONFIG)
        policy = LowRank(agent.model, 4, 0)
        examples = keep.kept(agent.model, agent.chat)[:12]
        episodes = [stream.episode("one", "train", 1)]
        config = dataclasses.replace(TRAIN, warm_plain=100)
        for step in range(12):
            parts = supervised.examples(agent, config, step, episodes, keep.drawn(examples, 0, step)).parts
            *_, kept = supervised.backward(agent, policy, parts, 2048, (1.0, 0.0, 0.0, weight))
            assert kept > 0
            policy.step(3e-3)
        lost[weight] = supervised.backward(agent, policy, [examples], 4096)[0]
    assert lost[4.0] < 0.9 * lost[0.0]


def test_a_run_says_how_well_it_keeps_them(tmp_path):
    start(tmp_path / "run", extra='policy = "lora"\nwarm_keep = 0.5', rl_steps=0, control_steps=0).run()
    rows = [row for row in lines(tmp_path / "run") if row["phase"] == "warm" and "keep_loss" in row]
    assert len(rows) == 2 and all(row["keep_loss"] > 0 for row in rows)
