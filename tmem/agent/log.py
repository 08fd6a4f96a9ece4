"""A rollout as Markdown that a person reads."""

from __future__ import annotations

from .episode import Rollout


def readable(rollout: Rollout) -> str:
    """One episode as Markdown: every pair with the text it came from, the loss before and after, ‖ΔW‖, the answers."""
    lines = [f"# {rollout.episode.id}"]
    for i, entry in enumerate(rollout.log):
        learned, written = entry.learned, entry.written
        lines += [f"## write {i + 1}", "", "> " + entry.segment.replace("\n", "\n> "), ""]
        stuck = {s["question"]: s for s in entry.stuck}
        for pair in written.pairs:
            s = stuck.get(pair.question)
            mark = "" if s is None else f"  [paraphrase {'held' if s['recalled'] else 'lost: ' + s['said']}" + (
                "]" if s["other"] is None else f", other person {'LEAKED' if s['leaked'] else 'clean'}]"
            )
            lines.append(f"- {pair.question} -> {pair.answer}{mark}")
        kept = "kept" if learned.kept else f"ROLLED BACK: {learned.reason}"
        lines += [
            "",
            f"dropped: {written.malformed} malformed, {written.empty} empty, {written.duplicates} duplicate, "
            f"{written.conflicts} conflicting; loss {learned.loss_before:.3f} -> {learned.loss_after:.3f}, "
            f"‖ΔW‖ {learned.norm:.2f}, {kept}",
            "",
        ]
    lines.append("## questions")
    for question, said in zip(rollout.episode.questions, rollout.answers):
        lines.append(f"- {question.text} -> {said!r} (right: {' | '.join(question.answers)})")
    return "\n".join(lines) + "\n"
