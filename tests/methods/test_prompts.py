"""How every method is asked: words, examples read once, dates, pairs that are left out, and what gold pairs leave in Δ."""

from dataclasses import replace

import pytest
from tiny import Letters, model, pairs
from tiny_agent import CONFIG
from tiny_chat import tokenizer

from tmem.agent.agent import Agent
from tmem.episode import Episode, Evidence, Question
from tmem.evaluation.summary import summarise
from tmem.methods import methods, prompts, reader
from tmem.methods.methods import METHODS, form_of
from tmem.methods.reader import Kept, Reader, Settings
from tmem.models.chat import Chat

ASKED = "Answer in a few words; if you do not know, answer: unknown.\nwho?"
QUESTION = Question("q", "who?", ("Ann",), "k")
TEMPLATE = ASKED.replace("unknown", "{unknown}").replace("who?", "{question}")


@pytest.fixture
def agent():
    learn, answer = replace(CONFIG.learn, renderings=(TEMPLATE,)), replace(CONFIG.answer, asked=TEMPLATE)
    return Agent.build(model(max_position_embeddings=2048), Letters(), replace(CONFIG, learn=learn, answer=answer), 2)


def words(agent, method, text, **options):
    """What a method's prompt says when `text` was kept, and where it stops being the same for all questions."""
    settings = Settings(form=form_of(method, prompts.FEW_SHOT), **options)
    put = reader.prompt(agent, Kept(text=text), QUESTION, settings)
    said = agent.chat.tokenizer.decode(put.ids)
    assert 0 <= put.examples <= put.begin and (put.examples > 100) == (settings.form == prompts.FEW_SHOT)
    return said, said[: put.begin]


def test_every_method_says_how_it_is_asked():
    text = [m for m in METHODS if m not in ("constant", "gold", "tmem", "tmem+retrieval")]
    for chosen in prompts.FORMS:
        forms = {m: form_of(m, chosen) for m in METHODS}
        assert forms == dict.fromkeys(text, chosen) | {"constant": None} | dict.fromkeys(
            ("gold", "tmem", "tmem+retrieval"), prompts.AS_TAUGHT
        )
    assert (
        form_of("full", prompts.FEW_SHOT, at_length=True) == form_of("tmem", prompts.FEW_SHOT, at_length=True) == prompts.ALONE
    )
    assert form_of("constant", prompts.FEW_SHOT, at_length=True) is None


def test_text_is_asked_about_after_four_examples_that_are_read_once(agent):
    said, shared = words(agent, "full", "Ann is king.")
    assert len(prompts.EXAMPLES) == 4 and said.count("Question: ") == said.count("Answer:") == 5
    assert said.endswith("\n\nAnn is king.\n\nQuestion: who?\nAnswer:") and shared == said[: -len("Question: who?\nAnswer:")]
    for text, question, answer in prompts.EXAMPLES:
        assert f"{text}\n\nQuestion: {question}\nAnswer: {answer}\n\n" in said
    said, shared = words(agent, "retrieval", lambda _: "Ann is king.")
    assert said.endswith("Ann is king.\n\nQuestion: who?\nAnswer:") and shared == said[: said.index("Ann is king.")]
    said, shared = words(agent, "none", None)
    assert (
        said == shared + "Question: who?\nAnswer:" and "bakery on Mill Street was" not in said and said.count("Question") == 5
    )


def test_other_forms_are_a_turn_of_the_user(agent):
    for method, text, expected in (("tmem", None, ASKED), ("tmem+retrieval", lambda _: "Ann.", f"Ann.\n\n{ASKED}")):
        said, shared = words(agent, method, text)
        assert said == f"User: {expected}\nAssistant:".replace("Assistant:", "Assistant: ") and shared == ""
    put = reader.prompt(agent, Kept(text="Ann."), QUESTION, Settings(form=prompts.INSTRUCTION))
    assert agent.chat.tokenizer.decode(put.ids) == f"User: Ann.\n\n{ASKED}\nAssistant: " and put.begin == len("User: Ann.\n")
    put = reader.prompt(agent, Kept(), QUESTION, Settings(form=prompts.ALONE))
    assert agent.chat.tokenizer.decode(put.ids) == "User: who?\nAssistant: "


def test_a_completion_has_the_tokenizer_s_beginning_and_no_turn():
    chat = Chat(Letters())
    assert chat.completion("ab") == chat.plain("ab")
    chat = Chat(tokenizer("byte-level", bos="<s>"))
    assert chat.completion("ab")[-len(chat.plain("ab")) :] == chat.plain("ab")


def test_oracle_shows_each_line_under_its_session_s_date(agent):
    chunks = (
        "DATE: 1 May 2023\nCONVERSATION:\nAnn: hi\nBo: yesterday",
        "DATE: 2 May 2023\nCONVERSATION:\nAnn: so",
        "no date\nx",
    )
    whole = Evidence(1, chunks[1])
    question = replace(QUESTION, evidence=(Evidence(0, "Bo: yesterday"), Evidence(0, "Bo: yesterday"), whole, Evidence(2, "x")))
    (kept,) = methods.oracle(Reader(agent), [Episode("e", chunks, ((),) * 3, (question,))])
    assert kept.text(question) == f"[DATE: 1 May 2023] Bo: yesterday\n{chunks[1]}\nx"
    (found,) = methods.retrieval(Reader(agent), [Episode("e", chunks[:1], ((),), (QUESTION,))])
    assert "[DATE: 1 May 2023] Bo: yesterday" in found.text(QUESTION).splitlines(), "as retrieval shows it"


def test_all_pairs_are_shown_and_those_without_room_are_counted(agent):
    class Wrote:
        pairs, log = pairs(40), ()

    lines = [f"{p.question} {p.answer}" for p in Wrote.pairs]
    kept = methods.in_prompt(agent, Wrote, room=10**5)
    assert (kept.text, kept.lost) == ("\n".join(lines), 0)
    kept = methods.in_prompt(agent, Wrote, room=300)
    shown = kept.text.splitlines()
    assert (
        shown == lines[kept.lost :]
        and 0 < kept.lost < 40
        and len(kept.text) <= 300 < len(kept.text) + len(lines[kept.lost - 1])
    )
    assert methods.in_prompt(agent, Wrote, room=3).lost == 40


def test_gold_teaches_the_answers_and_no_abstention(agent, monkeypatch):
    taught, teach = [], Agent.teach

    def teaching(self, slots, new, lessons, on_step=None):
        taught.extend(new)
        return teach(self, slots, new, lessons, on_step)

    monkeypatch.setattr(Agent, "teach", teaching)
    untold = [replace(QUESTION, category="5"), replace(QUESTION, kind="unknown"), replace(QUESTION, category="abstention")]
    asked = [replace(QUESTION, id=f"{i}", text=f"who {i}?", answers=(f"a{i}", "b")) for i in range(3)]
    episodes = [Episode(f"e{i}", ("x",), ((),), (*asked[: i + 1], *untold)) for i in range(3)]
    agent.config = replace(agent.config, write=replace(agent.config.write, max_pairs=2))
    kept = methods.gold(Reader(agent), episodes)  # more episodes than slots, more pairs than a write
    assert [[(p.question[-6:], p.answer) for p in write] for write in taught] == [
        [("who 0?", "a0")], [("who 0?", "a0"), ("who 1?", "a1")], [("who 0?", "a0"), ("who 1?", "a1")], [("who 2?", "a2")],
    ]  # fmt: skip
    assert {p.question for write in taught for p in write} == {f"who {i}?" for i in range(3)}, "rendered by what teaches"
    assert all(k.delta is not None and k.text is None and k.state > 0 and k.cost.learned > 0 and k.lost == 0 for k in kept)
    assert not any(agent.bank.used)


def row(method, i, f1, **fields):
    return {"seed": 0, "method": method, "episode": f"e{i % 2}", "id": f"q{i}", "kind": "k", "category": "", "f1": f1,
            "abstained": False, "prompt_tokens": 1, "generated_tokens": 1, "seconds": 0.0, **fields}  # fmt: skip


def test_questions_that_the_text_answers_are_scored_apart():
    answers = [row("none", 0, 1.0), row("none", 1, 0.5), row("none", 2, 0.0, abstained=True)]
    answers += [row("none", 3, 1.0, kind="unknown", abstained=True), row("none", 4, 0.0, category="5")]
    answers += [row("tmem", i, 1.0, category="5" * (i > 2)) for i in range(5)]
    readings = [
        {"seed": 0, "method": m, "episode": "e0", "state_bytes": 0, "peak_tokens": 1, "seconds": 0.0} for m in ("none", "tmem")
    ]
    found = summarise(answers, readings)
    none = found["methods"]["none"]
    assert none["f1"] == 0.5 and (none["answerable"]["n"], none["answerable"]["f1"]) == (3, 0.5)
    assert none["answerable"]["f1_ci"][0] <= 0.5 <= none["answerable"]["f1_ci"][1]
    assert none["abstained"] == {"answerable": pytest.approx(1 / 3), "unanswerable": 0.5}
    assert (
        found["differences"]["f1"]["tmem - none"]["mean"] == 0.5 == found["answerable_differences"]["f1"]["tmem - none"]["mean"]
    )
    found = summarise(answers[:3], readings[:1])
    assert "answerable" not in found["methods"]["none"] and "answerable_differences" not in found
    assert found["methods"]["none"]["abstained"] == {"answerable": pytest.approx(1 / 3)}
