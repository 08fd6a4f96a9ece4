"""A rollout as Markdown that a person reads."""

from __future__ import annotations

from collections.abc import Sequence

from ..terminal.plain import in_markdown
from .loop import LogEntry, Rollout
from .write import DROPPED


def record(rollout: Rollout) -> dict:
    """One episode as plain data: what was read, written, learned, seen and done in its scene, asked and answered."""
    questions = [
        {"text": q.text, "answers": list(q.answers), "said": said}
        for q, said in zip(rollout.episode.questions, rollout.answers)
    ]
    turns = [
        {"seen": t.seen.text, "said": t.said, "called": t.outcome.called, "reward": t.outcome.reward} for t in rollout.turns
    ]
    out = {"id": rollout.episode.id, "writes": writes(rollout.log), "questions": questions}
    return out | {"turns": turns} if turns else out


def writes(log: Sequence[LogEntry]) -> list[dict]:
    """The writes of one episode as plain data."""
    return [
        {
            "segment": e.passage,
            "pairs": [[p.question, p.answer] for p in e.written.pairs],
            "dropped": {k: getattr(e.written, k) for k in DROPPED},
            "loss": [e.learned.loss_before, e.learned.loss_after],
            "norm": e.learned.norm,
            "undone": "" if e.learned.kept else e.learned.reason,
            "stuck": e.stuck,
        }
        for e in log
    ]


def readable(record: dict) -> str:
    """A record as Markdown, in which texts stand for themselves: every pair with the text it came from, the loss before and
    after, ‖ΔW‖, the answers."""
    lines = [f"# {in_markdown(record['id'])}"]
    for i, write in enumerate(record["writes"]):
        lines += [f"## write {i + 1}", "", *(f"> {in_markdown(line)}" for line in write["segment"].split("\n")), ""]
        stuck = {s["question"]: s for s in write["stuck"]}
        for question, answer in write["pairs"]:
            s = stuck.get(question)
            mark = (
                ""
                if s is None
                else f"  [paraphrase {'held' if s['recalled'] else 'lost: ' + s['said']}"
                + ("]" if s["other"] is None else f", other person {'LEAKED' if s['leaked'] else 'clean'}]")
            )
            lines.append(f"- {in_markdown(f'{question} -> {answer}{mark}')}")
        kept = f"ROLLED BACK: {write['undone']}" if write["undone"] else "kept"
        dropped = write["dropped"]
        lines += [
            "",
            f"dropped: {dropped['malformed']} malformed, {dropped['empty']} empty, {dropped['duplicates']} duplicate, "
            f"{dropped['conflicts']} conflicting, {dropped.get('unanswered', 0)} unanswered; "
            f"loss {write['loss'][0]:.3f} -> {write['loss'][1]:.3f}, "
            f"‖ΔW‖ {write['norm']:.2f}, {in_markdown(kept)}",
            "",
        ]
    for i, turn in enumerate(record.get("turns", ())):
        lines += [f"## turn {i + 1}", ""]
        for name in ("seen", "said"):
            lines += [f"{name}:", *(f"> {in_markdown(line)}" for line in turn[name].split("\n")), ""]
        lines += [f"tool: {turn['called'] or 'none'}; reward {turn['reward']:g}", ""]
    lines.append("## questions")
    for q in record["questions"]:
        line = f"{q['text']} -> {q['said']!r} (right: {' | '.join(q['answers'])})"
        lines.append(f"- {in_markdown(line)}")
    return "\n".join(lines) + "\n"
