"""What `tmem eval` does not say of a writer: python tools/writer_scores.py FILE [PASSAGES] [ADAPTER] [SEED]

FILE holds passages with questions, as `tmem eval --task squad --data` reads them; so many are drawn with a seed. ADAPTER is a
folder, default or none. It prints three things: how well the model answers beside the passage, with one beginning and with
those of the preset, see tmem.agent.write.stands. How many plain questions it answers without a text (tmem.rl.neutral). And, for
some values of `[answer] gain`, F1 out of Δ for the questions that a passage answers, and how often those are abstained from
that it does not: one of another passage, and those of tmem.tasks.untold. For that it writes down and learns each passage.
"""

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import replace

from tmem.agent.agent import Agent, Reply, first_line
from tmem.agent.config import agent_config
from tmem.agent.teach import Lesson
from tmem.models import loading
from tmem.rl import neutral
from tmem.tasks import metrics, squad
from tmem.tasks.untold import untold
from tmem.words import normalise

VALUES = (0.0, 0.03, 0.07, 0.15, 0.3)


def main(file: str, count: str = "12", adapter: str = "default", seed: str = "0") -> None:
    draw, every = random.Random(int(seed)), squad.passages(file)
    chosen = draw.sample([p for p in every if p.questions], int(count))
    never = [unanswered(passage, every, draw) for passage in chosen]
    model = loading.load_model(None, adapter=adapter)
    agent = Agent.build(*model, agent_config("default"), slots=len(chosen))
    for starts in (1, agent.config.write.starts):
        beside(agent, starts, chosen, never)
    print(f"plain questions: {neutral.plain(agent):.2f} right", flush=True)
    from_delta(agent, chosen, never)


def beside(agent: Agent, starts: int, chosen: list[squad.Passage], never: list[list[str]]) -> None:
    """How questions are answered with the passage in the prompt, in the words in which known questions are."""
    agent = replace(agent, config=replace(agent.config, write=replace(agent.config.write, starts=starts)))
    told = [q for p in chosen for q in p.questions]
    said = replies(agent.write([p.text for p in chosen], None, [[q.text for q in p.questions] for p in chosen]))
    f1 = mean([metrics.f1(first_line(reply.text), question) for reply, question in zip(said, told, strict=True)])
    lost = sum(unknown(agent, reply.text) for reply in said)
    right = mean([unknown(agent, reply.text) for reply in replies(agent.write([p.text for p in chosen], None, never))])
    print(
        f"beside the passage, {starts} beginning{'s' * (starts > 1)}: F1 {f1:.2f}, abstained from {lost} of {len(told)}, "
        f"and from {right:.2f} of what it does not answer",
        flush=True,
    )


def from_delta(agent: Agent, chosen: list[squad.Passage], never: list[list[str]]) -> None:
    """F1 and abstentions once the passages are gone."""
    slots = [agent.bank.alloc() for _ in chosen]
    drafts = agent.write([p.text for p in chosen])
    agent.teach(slots, [d.written.pairs for d in drafts], [Lesson() for _ in chosen])
    told = [(slot, q) for slot, passage in zip(slots, chosen) for q in passage.questions]
    asked = [*((slot, q.text) for slot, q in told), *((slot, text) for slot, texts in zip(slots, never) for text in texts)]
    said = agent.say([agent.asked(text) for _, text in asked], [s for s, _ in asked], max_new=agent.config.answer.max_new)
    print(f"from Δ, {len(told)} questions that are answered and {len(asked) - len(told)} that are not:")
    for gain in VALUES:
        agent.config = replace(agent.config, answer=replace(agent.config.answer, gain=gain))
        answers = agent.settled([text for _, text in asked], said, [slot for slot, _ in asked])
        f1 = mean([metrics.f1(answer, q) for answer, (_, q) in zip(answers, told)])
        print(f"  gain {gain:.2f}: F1 {f1:.2f}, abstained from {mean([unknown(agent, s) for s in answers[len(told) :]]):.2f}")


def unanswered(passage: squad.Passage, every: list[squad.Passage], draw: random.Random) -> list[str]:
    """Questions that the passage does not answer."""
    others = [p for p in every if p.title == passage.title and p is not passage]
    strange = draw.choice([p for p in every if p.title != passage.title and p.questions])
    return [draw.choice(strange.questions).text, *(q.text for q in untold(passage, others, draw))]


def replies(drafts: Sequence) -> list[Reply]:
    return [reply for draft in drafts for reply in draft.replies]


def unknown(agent: Agent, said: str) -> bool:
    return normalise(first_line(said)) == normalise(agent.config.learn.unknown)


def mean(values: list) -> float:
    return math.fsum(values) / max(1, len(values))


if __name__ == "__main__":
    main(*sys.argv[1:])
