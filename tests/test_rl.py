"""The loss, the replay of actions under their own Δ, the masters, and a tiny training run with a resume."""

import dataclasses
import json

import pytest
import torch
from test_loop import CONFIG, EPISODES, agent_of
from tiny import Letters, model, pairs
from wrong import batch_loss, stale_snapshot

import tmem.agent.episode as loop
from tmem import models
from tmem.agent.episode import run, segments
from tmem.agent.learn import learn
from tmem.agent.write import Written
from tmem.episode import Pair
from tmem.rl import rollout as ro
from tmem.rl import supervised, trainer
from tmem.rl.loss import advantages, policy_loss
from tmem.rl.masters import Masters
from tmem.tasks import stream
from tmem.testing import assert_close

# the loss --------------------------------------------------------------------------------------------------------------


def test_advantages_are_centred_in_their_group_and_zero_in_a_dead_one():
    rewards = torch.tensor([[0.0, 1.0, 0.5, 0.5], [0.3, 0.3, 0.3, 0.3], [1.0, 1.0, 1.0, 0.0]])
    a = advantages(rewards)
    assert torch.allclose(a.mean(1), torch.zeros(3), atol=1e-6)
    assert not a[1].any() and torch.allclose(a[0].square().mean(), torch.tensor(1.0), atol=1e-4)
    assert torch.allclose(advantages(rewards, normalise=False)[0], rewards[0] - 0.5)


def test_policy_loss_is_reinforce_at_ratio_one_and_clips_beyond():
    new = torch.tensor([-1.0, -2.0, -0.5, -3.0], requires_grad=True)
    adv = torch.tensor([1.0, -1.0, 2.0, 0.5])
    weight = torch.full((4,), 0.25)
    policy_loss(new, new.detach(), adv, weight).loss.backward()
    assert torch.allclose(new.grad, -adv * weight)  # the gradient of -Σ w Â log π
    old = new.detach() - torch.tensor([0.5, 0.5, -0.5, -0.5])  # ratio e^0.5, e^0.5, e^-0.5, e^-0.5
    new.grad = None
    found = policy_loss(new, old, adv, weight)
    found.loss.backward()
    cut = new.grad == 0
    assert cut.tolist() == [True, False, False, False] and found.clipped == 0.25
    with pytest.raises(ValueError, match="four tensors of one shape"):
        policy_loss(new, old[:2], adv, weight)


# the replay ------------------------------------------------------------------------------------------------------------


def rollouts_of(agent, run=run, monkeypatch=None):
    """A traced rollout whose writes always yield a pair, so that every later action has a Δ of its own."""
    monkeypatch.setattr(loop, "parse", lambda *a, **k: Written([Pair("who?", "me")]))
    return run(agent, EPISODES[2:], ["k"], temperature=1.0, trace=True)


def replayed(agent, rollouts):
    masters = Masters(agent.model)
    masters.trainable(True)
    actions = [(a, 1.0) for r in rollouts for a in r.actions]
    found = ro.backward(agent, actions, clip=0.2, micro_tokens=256)
    masters.trainable(False)
    return found, masters


def test_replay_finds_the_probabilities_the_actions_were_sampled_with(monkeypatch):
    agent = agent_of(slots=8)
    found, _ = replayed(agent, rollouts_of(agent, monkeypatch=monkeypatch))
    assert found.ratio_off < 1e-4 and found.clipped == 0.0 and not any(agent.bank.used)


def test_a_stale_snapshot_is_caught(monkeypatch):
    agent = agent_of(slots=8)
    found, _ = replayed(agent, rollouts_of(agent, stale_snapshot.run, monkeypatch))
    assert found.ratio_off > 1e-2


def test_the_policy_gradient_does_not_depend_on_micro_batches_and_delta_is_a_constant(monkeypatch):
    agent = agent_of(slots=8)
    rollouts = rollouts_of(agent, monkeypatch=monkeypatch)
    masters = Masters(agent.model)
    actions = [(a, s) for r in rollouts for a, s in zip(r.actions, (1.0, -0.5, 2.0, 0.25, 1.0, 0.0))]
    grads = []
    for micro, taken in ((64, 0), (4096, 0), (4096, 7)):  # at last with one free slot, so one Δ at a time
        for _ in range(taken):
            agent.bank.alloc()
        masters.trainable(True)
        ro.backward(agent, actions, clip=0.2, micro_tokens=micro)
        masters.trainable(False)
        grads.append(torch.cat([m.grad.flatten() for m in masters.masters]))
        masters.optimizer.zero_grad()
    assert_close("micro-batches", grads[0], grads[1], 1e-4)
    assert_close("few slots", grads[2], grads[1], 1e-4)
    with pytest.raises(RuntimeError, match="all 8 slots are in use"):
        agent.bank.alloc()
        ro.backward(agent, actions, clip=0.2, micro_tokens=64)
    assert grads[0].any() and not agent.bank.grad.any()


def test_a_batch_normalised_loss_is_caught():
    """The check of test_loop (alone = among others), which the wrong update must fail."""
    jobs = [(0, pairs(3)), (1, pairs(4, "b"))]
    found = {}
    for name, update in (("right", learn), ("wrong", batch_loss.learn)):
        both, alone = agent_of(), agent_of()
        for agent in (both, alone):
            agent.bank.alloc()
            agent.bank.alloc()
            for slot in (0, 1):  # SGD-like steps: Adam forgets the size of a gradient
                agent.bank.configure(slot, eps=1.0)
        update(both.model, both.bank, jobs, both.chat, CONFIG.learn)
        update(alone.model, alone.bank, jobs[:1], alone.chat, CONFIG.learn)
        found[name] = torch.equal(both.bank.param[0], alone.bank.param[0])
    assert found == {"right": True, "wrong": False}


# masters ---------------------------------------------------------------------------------------------------------------


def test_masters_are_adamw_in_fp32_and_publish_to_a_bf16_model(tmp_path):
    network = model(dtype=torch.bfloat16)
    reference = model().requires_grad_(True)
    reference.load_state_dict({k: v.float() for k, v in network.state_dict().items()})
    masters = Masters(network)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-6, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(3):
        masters.trainable(True)
        generator = torch.Generator().manual_seed(step)
        for param, twin in zip(network.parameters(), reference.parameters()):
            gradient = torch.randn(param.shape, generator=generator).bfloat16()
            (param * gradient).sum().backward()
            twin.grad = gradient.float()
        masters.trainable(False)
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        assert masters.step(1e-6, 1.0) == pytest.approx(float(norm), rel=1e-4)
        optimizer.step()
    for name, master, twin, param in zip(masters.names, masters.masters, reference.parameters(), network.parameters()):
        assert_close(name, master, twin.detach(), 1e-6)
        assert torch.equal(param, master.bfloat16())
    masters.save(tmp_path / "m.safetensors")
    again = Masters(model(seed=4, dtype=torch.bfloat16))
    again.load(tmp_path / "m.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.masters, masters.masters))
    state = [m.optimizer.state[m.masters[0]]["exp_avg"] for m in (again, masters)]
    assert torch.equal(*state)
    fresh = Masters(model())
    fresh.save(tmp_path / "fresh.safetensors")
    again.load(tmp_path / "fresh.safetensors")  # the control starts from the warm start's masters, without RL's moments
    assert not again.optimizer.state
    with pytest.raises(ValueError, match="belongs to another model"):
        Masters(model(num_hidden_layers=6)).load(tmp_path / "m.safetensors")


def test_a_gradient_that_is_not_finite_takes_no_step():
    masters = Masters(model())
    before = [m.clone() for m in masters.masters]
    masters.masters[0].grad = torch.full_like(masters.masters[0], float("nan"))
    assert not masters.step(1.0) < float("inf")
    assert all(torch.equal(a, b) for a, b in zip(before, masters.masters))


# the trainer -----------------------------------------------------------------------------------------------------------

PRESET = """
[memory]
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
warm_episodes = 1
rl_steps = 2
rl_episodes = 1
rl_group = 2
eval_episodes = 2
eval_split = "dev"
"""


@pytest.fixture
def tiny_models(monkeypatch):
    saved = {}

    def save(m, tokenizer, path):
        saved[path.name] = {k: v.clone() for k, v in m.state_dict().items()}

    monkeypatch.setattr(models, "load", lambda name=None, **_: (model(), Letters()))
    monkeypatch.setattr(models, "save", save)
    return saved


def silent():
    return trainer.Progress(lambda row: None, lambda *_: None)


def test_a_run_does_its_phases_and_an_interrupted_one_resumes_to_the_same_weights(tmp_path, tiny_models):
    preset = tmp_path / "tiny.toml"
    preset.write_text(PRESET)
    summary = trainer.Trainer(preset, tmp_path / "whole").run(silent())
    trained = {k: v.clone() for k, v in tiny_models["rl"].items()}
    assert set(summary) >= {"reward_base", "reward_warm", "reward_sft", "reward_rl", "n_episodes"}
    assert all(0 <= summary[f"reward_{p}"] <= 1 for p in trainer.PHASES) and set(tiny_models) == {"warm", "rl"}
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["phase"] == "rl"] == [0, 1]
    assert "greedy" in summary["evaluations"]["rl"] and (tmp_path / "whole/episodes/rl-greedy.md").is_file()

    part, calls = trainer.Trainer(preset, tmp_path / "part"), []

    def stop():
        calls.append(1)
        return len(calls) == 4  # inside the RL phase

    with pytest.raises(trainer.Interrupted):
        part.run(silent(), stop)
    with pytest.raises(FileExistsError, match="--resume"):
        trainer.Trainer(preset, tmp_path / "part")
    with pytest.raises(ValueError, match="other settings"):
        trainer.Trainer(preset, tmp_path / "part", resume=True, seed=9)
    again = trainer.Trainer(preset, tmp_path / "part", resume=True)
    assert again.state["phase"] == "rl" and again.state["step"] == 1
    resumed = again.run(silent())
    assert resumed["reward_rl"] == summary["reward_rl"]
    assert all(torch.equal(v, tiny_models["rl"][k]) for k, v in trained.items())
    with pytest.raises(FileNotFoundError, match="holds no run"):
        trainer.Trainer(preset, tmp_path / "nothing", resume=True)


@pytest.mark.parametrize("window", [80, 400, 2000])
def test_the_warm_start_teaches_passages_as_the_agent_cuts_them_with_the_pairs_that_stand(window):
    agent = agent_of()
    config = dataclasses.replace(agent.config, write=dataclasses.replace(agent.config.write, window=window))
    agent = dataclasses.replace(agent, config=config)
    for seed in range(8):
        episode = stream.episode(f"passages/{seed}", "train", 3)
        found = supervised.passages(agent, episode)
        fits = all(agent.chat.count(chunk) <= window for chunk in episode.chunks)
        assert not fits or [text for text, _ in found] == segments(agent.chat, episode.chunks, window)
        assert "\n\n".join(text for text, _ in found) == "\n\n".join(episode.chunks)
        for _, gold in found:
            assert len({p.question for p in gold}) == len(gold)
        last = {p.question: p.answer for gold in episode.pairs for p in gold}
        assert {p.question: p.answer for _, gold in found for p in gold} == last


def test_supervised_examples_weigh_the_same_however_they_are_batched():
    agent = agent_of()
    masters = Masters(agent.model)
    batch = [supervised.Example([5] * n, [7] * m) for n, m in ((3, 1), (20, 4), (40, 2))]
    found = []
    for micro in (16, 4096):
        masters.trainable(True)
        loss = supervised.backward(agent, batch, micro)
        masters.trainable(False)
        found.append((loss, torch.cat([m.grad.flatten() for m in masters.masters])))
        masters.optimizer.zero_grad()
    alone = [supervised_loss(agent, e) for e in batch]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) == pytest.approx(sum(alone) / 3, rel=1e-5)
    assert_close("gradient", found[0][1], found[1][1], 1e-5)


def supervised_loss(agent, example):
    ids = torch.tensor([example.prompt + example.answer])
    logp = agent.model(input_ids=ids).logits[0].log_softmax(-1)
    n = len(example.prompt)
    return -float(logp[torch.arange(n - 1, ids.shape[1] - 1), ids[0, n:]].mean())


def test_recall_of_gold_pairs_needs_the_value_and_the_person():
    gold = [Pair("What is Ada's dog called?", "Rex"), Pair("Where does Ben live?", "Ulm")]
    assert ro.recall([Pair("Ada has a dog named?", "rex.")], gold) == 0.5
    assert ro.recall([Pair("What is Ben's dog called?", "Rex")], gold) == 0.0
    assert ro.recall([], gold) == 0.0 and dataclasses.is_dataclass(ro.Scores)
