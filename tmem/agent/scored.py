"""How probable the right answers are: what sampling them many times would estimate, in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..episode import Question
from ..models import forward as fw
from .learn import MAX_TOKENS


@torch.no_grad()
def probabilities(agent, prompts: Sequence[str], answers: Sequence[str], slots: Sequence[int]) -> list[float]:
    """π(answers[i], end of turn | prompts[i]) under slot `slots[i]`, each the same bits in any company."""
    chat, model, bank = agent.chat, agent.model, agent.bank
    by_length: dict[int, list[tuple[int, list[int], int]]] = {}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start = chat.prompt(prompt)
        ids = start + chat.answer(answer)
        by_length.setdefault(fw.bucket(len(ids)), []).append((i, ids, len(start)))
    out = [0.0] * len(prompts)
    for length, sequences in by_length.items():
        size = max(1, MAX_TOKENS // length)
        for part in (sequences[at : at + size] for at in range(0, len(sequences), size)):
            ids = fw.pad([ids for _, ids, _ in part], length, device=bank.device)
            spots = [(r, c, i, ids[c]) for r, (i, ids, start) in enumerate(part) for c in range(start, len(ids))]
            rows, columns, owners, said = (list(x) for x in zip(*spots))
            filling = [0] * (fw.filled(len(rows)) - len(rows))
            used = [slots[i] for i, _, _ in part] + [-1] * (len(ids) - len(part))
            with bank.route(used, learn=False):
                logits = fw.token_logits(model, ids, rows + filling, [c - 1 for c in columns] + filling)
            logp = logits[: len(said)].float().log_softmax(-1).gather(1, torch.tensor(said, device=bank.device)[:, None])
            total = dict.fromkeys(owners, 0.0)
            for i, value in zip(owners, logp[:, 0].double().tolist()):
                total[i] += value
            for i, value in total.items():
                out[i] = math.exp(value)
    return out


def any_of(agent, questions: Sequence[Question], slots: Sequence[int]) -> list[float]:
    """The probability of any right answer to each question: different strings, so their probabilities add up."""
    right = [list(dict.fromkeys(q.answers)) for q in questions]
    items = [(agent.asked(q.text), a, slot) for q, answers, slot in zip(questions, right, slots, strict=True) for a in answers]
    found = iter(probabilities(agent, *([item[k] for item in items] for k in range(3))))
    return [min(1.0, sum(next(found) for _ in answers)) for answers in right]
