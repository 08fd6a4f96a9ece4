"""How a question is worded, with the text that a method kept, if any, before it.

Text is asked about in the form that serves a model best. One that was never taught to answer from text goes on with a plain
text of four worked examples (`FEW_SHOT`): on development data the default model scores far more so than by an instruction
(docs/benchmarks.md has the table). One that was trained to read in the words of the instruction is asked in them
(`INSTRUCTION`). Δ is asked as it was taught (`AS_TAUGHT`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..agent.write import beside

if TYPE_CHECKING:  # the words alone are light to import
    from ..agent.agent import Agent
    from ..models.chat import Chat

FEW_SHOT, INSTRUCTION, AS_TAUGHT, ALONE = "few-shot", "instruction", "asked", "question alone"
FORMS = (FEW_SHOT, INSTRUCTION)  # what an evaluation chooses between, for the methods that show text

# Text, question and answer of each example: prose, talk under a date, and talk of two people. The same ones for every task.
EXAMPLES = (
    (
        "The bakery on Mill Street was opened in 1962 by Martha Quill. It sold rye bread to railway workers.",
        "Who opened the bakery on Mill Street?",
        "Martha Quill",
    ),
    (
        "[DATE: 2:10 pm on 4 March, 2021] Tom: We adopted a dog yesterday, a beagle called Biscuit.",
        "When did Tom adopt a dog?",
        "3 March 2021",
    ),
    (
        "The lake is 48 metres deep, and it freezes for three months of the year.",
        "How deep is the lake?",
        "48 metres",
    ),
    (
        "[DATE: 9:30 am on 12 June, 2022] Nina: I work at the harbour now.\n"
        "[DATE: 9:30 am on 12 June, 2022] Paul: I still teach the piano and the flute.",
        "What does Paul teach?",
        "the piano and the flute",
    ),
)


def ids(agent: Agent, form: str, text: str | None, question: str) -> list[int]:
    """Token ids of a whole prompt. The instruction is that of `Agent.asked`."""
    if form == FEW_SHOT:
        return agent.chat.completion(_examples(text) + _example(text, question))
    asked = question if form == ALONE else agent.asked(question)
    return agent.chat.prompt(asked if text is None else beside(text, asked))


def shared(chat: Chat, form: str, text: str | None) -> list[int]:
    """Token ids of a prompt that begins as those of several questions do. text: what stands before all of them, "" where each
    has its own, None where none has any."""
    if form == FEW_SHOT:
        return chat.completion(_examples(text) + (f"{text}\n\n" if text else ""))
    return chat.prompt(text) if text else []


def examples_size(chat: Chat, form: str) -> int:
    """Tokens of the examples, which stand beside text and question."""
    return chat.count(_examples("")) if form == FEW_SHOT else 0


def _examples(text: str | None) -> str:
    """The worked examples, without their texts where the question has none."""
    return "".join(f"{_example(None if text is None else shown, *rest)}\n\n" for shown, *rest in EXAMPLES)


def _example(text: str | None, question: str, answer: str | None = None) -> str:
    before = f"{text}\n\n" if text else ""
    return f"{before}Question: {question}\nAnswer:" + ("" if answer is None else f" {answer}")
