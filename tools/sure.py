"""How sure an answer should be: python tools/sure.py FILE [PASSAGES]

FILE holds passages with questions, as `tmem eval --task squad --data` reads them. So many of them, drawn with a seed, are
written down and learned, a memory each. It prints how well the model reads beside the passage. For some values of
`[answer] sure` it prints the F1 of the questions that a passage answers, and how often those are abstained from that it does
not: one of another passage, and those of tmem.tasks.untold.
"""

import math
import random
import sys
from dataclasses import replace

from tmem.agent.agent import Agent, Reply, first_line
from tmem.agent.config import agent_config
from tmem.agent.teach import Lesson
from tmem.models import loading
from tmem.tasks import metrics, squad
from tmem.tasks.untold import untold
from tmem.words import normalise

VALUES = (0.0, 0.3, 0.4, 0.5, 0.6)


def main(file: str, count: str = "12") -> None:
    draw, every = random.Random(0), squad.passages(file)
    chosen = draw.sample([p for p in every if p.questions], int(count))
    agent = Agent.build(*loading.load_model(None, adapter="default"), agent_config("default"), slots=len(chosen))
    beside(agent, chosen)
    never = [unanswered(passage, every, draw) for passage in chosen]
    slots = [agent.bank.alloc() for _ in chosen]
    drafts = agent.write([p.text for p in chosen])
    agent.teach(slots, [d.written.pairs for d in drafts], [Lesson() for _ in chosen])
    told = [(slot, q) for slot, passage in zip(slots, chosen) for q in passage.questions]
    asked = [*((slot, q.text) for slot, q in told), *((slot, text) for slot, texts in zip(slots, never) for text in texts)]
    replies = agent.say(
        [agent.asked(text) for _, text in asked], [slot for slot, _ in asked], max_new=agent.config.answer.max_new
    )
    print(f"from Δ, {len(told)} questions that are answered and {len(asked) - len(told)} that are not:")
    for sure in VALUES:
        agent.config = replace(agent.config, answer=replace(agent.config.answer, sure=sure))
        said = [agent.settled(reply) for reply in replies]
        f1 = mean([metrics.f1(answer, q) for answer, (_, q) in zip(said, told)])
        print(f"  sure {sure:.1f}: F1 {f1:.2f}, abstained from {mean([unknown(agent, s) for s in said[len(told) :]]):.2f}")


def beside(agent: Agent, chosen: list[squad.Passage]) -> None:
    """How well questions are answered with the passage in the prompt, in the words in which known questions are."""
    drafts = agent.write([p.text for p in chosen], None, [[q.text for q in p.questions] for p in chosen])
    found: list[tuple[Reply, object]] = [x for d, p in zip(drafts, chosen) for x in zip(d.replies, p.questions)]
    f1 = mean([metrics.f1(first_line(reply.text), question) for reply, question in found])
    print(f"beside the passage: F1 {f1:.2f}, abstained from {sum(unknown(agent, r.text) for r, _ in found)} of {len(found)}")


def unanswered(passage: squad.Passage, every: list[squad.Passage], draw: random.Random) -> list[str]:
    """Questions that the passage does not answer."""
    others = [p for p in every if p.title == passage.title and p is not passage]
    strange = draw.choice([p for p in every if p.title != passage.title and p.questions])
    return [draw.choice(strange.questions).text, *(q.text for q in untold(passage, others, draw))]


def unknown(agent: Agent, said: str) -> bool:
    return normalise(first_line(said)) == normalise(agent.config.learn.unknown)


def mean(values: list) -> float:
    return math.fsum(values) / max(1, len(values))


if __name__ == "__main__":
    main(*sys.argv[1:])
