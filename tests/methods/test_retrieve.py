"""Retrieval: which first lines are headers, what is kept and counted, and the nearest lines of an embedding model."""

import numpy as np
import pytest
from tiny import Letters, model
from tiny_eval import Counted

from tmem.agent.agent import Agent
from tmem.agent.config import agent_config
from tmem.episode import Episode, Question
from tmem.methods import methods
from tmem.methods.reader import Reader, Settings
from tmem.methods.retrieve import Lines
from tmem.models import embed

LONG = "A" * 101


def episode(*chunks, asked=()):
    questions = tuple(Question(str(i), text, ("x",), "k") for i, text in enumerate(asked))
    return Episode("e", chunks, ((),) * len(chunks), questions)


@pytest.mark.parametrize(
    "chunk, lines",
    [
        ("DATE: 8 May 2023\nAda: hi\nBen: ho", ["[DATE: 8 May 2023] Ada: hi", "[DATE: 8 May 2023] Ben: ho"]),
        ("Date: Monday\n\nAda: hi\n", ["[Date: Monday] Ada: hi"]),
        ("TITLE: Normans\nThey came.", ["[TITLE: Normans] They came."]),
        ("DATE: 8 May 2023", ["DATE: 8 May 2023"]),
        # What only looks like one, or says too much: a role, a sentence, a word without a value, a long line.
        ("user: Rule one.\nRule two.", ["user: Rule one.", "Rule two."]),
        ("Two words: a line\nnext", ["Two words: a line", "next"]),
        ("Rules:\nnext", ["Rules:", "next"]),
        ("no header\nnext", ["no header", "next"]),
        (f"DATE: {LONG}\nnext", [f"DATE: {LONG}", "next"]),
        (f"DATE: {LONG[:100]}\nnext", [f"[DATE: {LONG[:100]}] next"]),
    ],
)  # fmt: skip
def test_a_first_line_is_a_header_if_it_is_one_short_field(chunk, lines):
    found = Lines.of(episode(chunk))
    assert found.lines == lines
    assert found.state == len("\n".join(line for line in chunk.splitlines() if line.strip()).encode()), "headers are kept once"


def test_a_label_below_a_header_is_not_found_for_its_word():
    chunks = "DATE: 8 May 2023\nCONVERSATION:\nAda: hi\nBen: a long conversation, that was", "DATE: 9 May 2023\nCONVERSATION:"
    found = Lines.of(episode(*chunks))
    assert found.lines == ["[DATE: 8 May 2023] Ada: hi", "[DATE: 8 May 2023] Ben: a long conversation, that was"]
    assert found.ranked("Use DATE of CONVERSATION")[0] == 1
    assert Lines.of(episode("if x:\nELSE:\ny")).lines == ["if x:", "ELSE:", "y"], "of a text without a header all is text"


def test_nothing_is_found_in_nothing():
    assert (Lines.of(episode("", "\n \n")).ranked("what?"), Lines.of(episode()).state) == ([], 0)


def test_the_nearest_lines_come_first_and_equal_ones_in_order():
    lines = Lines(["aaa", "zzz", "aaz", "aaa"], Counted())
    assert lines.ranked("a") == [0, 3, 2, 1] and lines.ranked("zz") == [1, 2, 0, 3]
    vectors = 4 * 26 * 4
    assert lines.state == len("aaa\nzzz\naaz\naaa") + vectors and lines.embedded == 4


def test_dense_keeps_text_and_vectors_and_counts_what_it_embeds(monkeypatch):
    monkeypatch.setattr(methods, "dense", Counted)
    chunks = ("DATE: today\nbb bb\naa aa", "zz zz")
    agent = Agent.build(model(), Letters(), agent_config("default"), 1)
    (kept,) = methods.dense_retrieval(Reader(agent, Settings(context=32)), [episode(*chunks, asked=("zz?", "a b"))])
    assert kept.state == len("DATE: today\nbb bb\naa aa\nzz zz") + 3 * 26 * 4
    assert kept.cost.embedded == 4 + 4 + 2 + 1 + 2 and kept.cost.read == 0, "lines with their headers, and both questions"
    assert kept.text(Question("0", "zz?", ("x",), "k")) == "zz zz"


def test_the_embedding_model_itself():
    if embed.find_spec(embed.EMBEDDER) is None:
        pytest.skip("needs the extra: pip install 'tmem[dense]'")
    model = embed.dense()
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by a point.", "word " * 999]
    vectors = model(texts)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert model.tokens(texts[3:]) == embed.LONGEST and 6 < model.tokens(texts[:1]) < 12
    assert 10e6 < model.parameters < 12e6
