"""Whether the reward repeats itself: halves and their correlation worked by hand, and when training warns."""

import math
import random
from types import SimpleNamespace

import pytest
from tiny_agent import TRAIN
from wrong import halves_of_all_groups

from tmem.rl import grpo
from tmem.rl.halves import NOISY, correlation, halves, verdict


def test_the_correlation_of_two_groups_by_hand():
    """Centred: (-1, 0, 1) and (-1, 1, 0), so Σab = 1, Σa² = Σb² = 2; then (-1, 1) and (1, -1): Σab = -2, Σa² = Σb² = 2."""
    one, other = [(1.0, 4.0), (2.0, 6.0), (3.0, 5.0)], [(10.0, 3.0), (12.0, 1.0)]
    assert correlation([one]) == 0.5 and correlation([other]) == -1.0
    assert correlation([one, other]) == (1 - 2) / math.sqrt((2 + 2) * (2 + 2)) == -0.25


def test_how_easy_an_episode_is_does_not_count():
    """Two episodes, one easy and one hard; within each the halves disagree."""
    groups = [[(0.9, 0.8), (0.8, 0.9)], [(0.1, 0.2), (0.2, 0.1)]]
    assert correlation(groups) == pytest.approx(-1.0)
    assert halves_of_all_groups.correlation(groups) > 0.9


def test_a_correlation_that_is_not_defined_is_none():
    assert correlation([]) is None and correlation([[], []]) is None
    assert correlation([[(0.1, 1.0), (0.1, 2.0), (0.1, 4.0)]]) is None  # 0.1 + 0.1 + 0.1 is not 3 * 0.1
    assert correlation([[(1.0, 2.0)]]) is None and correlation([[(math.nan, 1.0), (0.0, 2.0)]]) is None
    assert correlation([[(math.inf, 1.0), (0.0, 2.0)]]) is None
    assert correlation([[(0.0, 0.0), (1.0, 1.0)], [(5.0, 5.0)] * 3, []]) == 1.0  # a dead group adds nothing


def test_halves_are_of_all_questions_each_once_and_the_same_for_a_group():
    rows = [[float(1 << q) for q in range(5)], [float(3 << q) for q in range(5)]]
    (a, b), (c, d) = halves(rows, "0/halves/0/0")
    assert 2 * a + 3 * b == 31 and (c, d) == (3 * a, 3 * b)
    assert halves(rows, "0/halves/0/0") == [(a, b), (c, d)] and halves(rows[::-1], "0/halves/0/0") == [(c, d), (a, b)]
    assert len({tuple(halves(rows, f"0/halves/{step}/0")) for step in range(40)}) == 10  # ways to choose two of five
    assert halves([[1.0], [2.0]], "k") == halves([], "k") == halves([[], []], "k") == []
    assert halves([[1.0, 2.0, 3.0], [0.0]], "k") == halves([[1.0], [1.0, 2.0]], "k") == []  # one ended before its questions


def test_a_reward_of_noise_has_none_and_one_of_the_rollout_has_some():
    rng, noise, signal = random.Random(0), [], []
    for episode in range(200):
        own = [rng.gauss(0, 0.5) for _ in range(6)]
        level = rng.gauss(0, 3)
        noise.append(halves([[level + rng.gauss(0, 1) for _ in range(8)] for _ in own], f"{episode}"))
        signal.append(halves([[level + skill + rng.gauss(0, 1) for _ in range(8)] for skill in own], f"{episode}"))
    assert abs(correlation(noise)) < 0.1
    assert correlation(signal) == pytest.approx(0.25 / (0.25 + 1 / 4), abs=0.1)  # variance of skill, of a half's noise


def test_training_warns_where_the_mean_of_ten_steps_is_not_above_zero():
    seen = []
    assert NOISY == 10 and [verdict(seen, None)] * 3 == [None] * 3 and seen == []
    said = [verdict(seen, r) for r in [0.5, -0.7] * 5]
    assert said[:9] == [None] * 9 and "split_half -0.10" in said[9] and "follows noise" in said[9] and seen == []
    assert [verdict(seen, r) for r in [0.7, -0.5] * 5] == [None] * 10
    assert verdict(seen, -0.5) is None and seen == [-0.5]


def test_what_a_scene_alone_is_scored_by_is_in_no_half():
    """Of a search whose questions are asked one by one only the questions have the rewarded score."""
    f1 = (0.0, 1.0), (0.5, 0.5)
    found = [SimpleNamespace(questions=[{"found": 0.5}, *({"f1": value} for value in row)]) for row in f1]
    group = SimpleNamespace(rewards=[0.5, 0.5], tokens=1, tries=1, values=[], found=found)
    assert grpo._told(group, TRAIN, "k").halves == halves(f1, "k")
