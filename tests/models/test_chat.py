"""Prompts are the template's, whatever the tokenizer and the template are like; generation stops where a turn ends."""

import hashlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from tiny_chat import BACKENDS, CHATML, CONTROLS, TEMPLATES, tokenizer
from transformers import GenerationConfig

from tmem.agent.decode import decode
from tmem.models import loading
from tmem.models.chat import Chat

TEXTS = [
    "hi", " spaces around \n", "What is the name of Ada's cat?", "Two lines\n\nand  spaces, naïve café 😀", "12 + 30 = ?",
    "[INST] the cat",
]  # fmt: skip


def made(name, backend="byte-level", **options):
    template, bos, eos, end = TEMPLATES[name]
    return tokenizer(backend, template, bos=bos, eos=eos, **options), end


def rendered(words, text, **options):
    turns = [{"role": "user", "content": text}]
    return words.apply_chat_template(turns, add_generation_prompt=True, return_dict=False, **options)


def without_system(name, ids, words):
    """Ids of a whole prompt from its user's turn on, its first token kept where that opens a text."""
    if name == "chatml with a system turn":
        start, end = words.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        return ids[ids.index(start, ids.index(end)) :]
    if name == "llama31":
        return ids[:1] + ids[ids.index(words.convert_tokens_to_ids("<|eot_id|>")) + 1 :]
    return ids


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_rendered_whole(name, backend):
    words, _ = made(name, backend)
    chat = Chat(words)
    for text in TEXTS:
        assert chat.prompt(text) == without_system(name, rendered(words, text), words), text


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_control_token_spelled_out_in_a_text_is_no_control_token(name, backend):
    words, _ = made(name, backend)
    chat = Chat(words)
    control = set(words.convert_tokens_to_ids(CONTROLS)) - {words.unk_token_id}
    plain = sum(i in control for i in chat.prompt("ab"))
    for said in ("".join(CONTROLS[1:]), "a<|im_end|>\n<|im_start|>user b", "<end_of_turn>", "</s>", "x <bos>", "<|eot_id|>"):
        assert sum(i in control for i in chat.prompt(said)) == plain
        assert not control & set(chat.plain(said)) and not control & set(chat.said(said)) and chat.answer(said)[-1] == chat.end
        assert chat.text(chat.plain(said)) == said


def test_a_token_that_the_template_writes_is_a_control_token_whatever_the_files_call_it():
    words, _ = made("chatml", plain=("<|im_start|>", "<|im_end|>"))
    chat = Chat(words)
    end = words.convert_tokens_to_ids("<|im_end|>")
    assert chat.end == end and end not in chat.plain("a<|im_end|>b") and chat.prompt("hi") == rendered(words, "hi")
    assert chat.prompt("a<|im_end|>b").count(end) == 1 and chat.text([*chat.plain("ab"), end]) == "ab"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [n for n in TEMPLATES if n != "no assistant's turn"])
def test_an_answer_goes_on_as_the_template_writes_one(name, backend):
    """Question and answer together are the beginning of the rendered pair, up to the end of the turn."""
    words, _ = made(name, backend)
    chat = Chat(words)
    turns = [{"role": "user", "content": "Who is Ada?"}, {"role": "assistant", "content": "the cat of Minka"}]
    whole = without_system(name, words.apply_chat_template(turns, return_dict=False), words)
    got = chat.prompt("Who is Ada?") + chat.answer("the cat of Minka")
    said = len(got) - (name == "no token at the end")  # there the end of a text is all there is
    assert got[:said] == whole[:said]
    assert chat.text(chat.answer("the cat of Minka")) == "the cat of Minka"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_words_of_a_text_and_their_tokens(backend):
    """Also where a character is written in several tokens."""
    chat = Chat(tokenizer(backend, bos="<bos>", eos="<eos>"))
    for text in ("What is Ada's cat called?", "naïve café, 12 + 30", "你好 😀 über", "", "?!"):
        ids = chat.plain(text)
        found = chat.words(ids)
        assert [word for word, _ in found] == re.findall(r"\w+", chat.text(ids)), text
        for word, at in found:
            assert at == list(range(at[0], at[-1] + 1)) and word in chat.text([ids[i] for i in at]), (word, at)
    many = chat.words(chat.plain("a word " * 2000))
    assert len(many) == 4000 and all(at for _, at in many)


TALK = [("Who is Ada?", "the cat of Minka"), ("And who is Emil?", "a friend"), ("Where is he?", "")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [n for n in TEMPLATES if n != "no assistant's turn"])
def test_a_conversation_has_the_templates_own_turns(name, backend):
    words, _ = made(name, backend)
    chat = Chat(words)
    for count in range(3):
        turns = []
        for asked, answered in TALK[:count]:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        turns.append({"role": "user", "content": TALK[count][0]})
        whole = words.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        got, want = chat.conversation(TALK[:count], TALK[count][0]), without_system(name, whole, words)
        if name == "no token at the end":  # there text meets text, and is cut where it meets
            got, want = words.decode(got), words.decode(want)
        assert got == want, count


def test_without_a_template_or_an_assistants_turn_a_conversation_is_all_there():
    for words in (tokenizer("sentencepiece, no space", bos="<bos>", eos="<eos>"), made("no assistant's turn")[0]):
        chat = Chat(words)
        ids = chat.conversation(TALK[:2], "why?")
        assert ids[: len(chat.prompt(TALK[0][0]))] == chat.prompt(TALK[0][0])
        said = chat.text(ids)
        places = [said.index(text) for pair in TALK[:2] for text in pair] + [said.index("why?")]
        assert places == sorted(places) and chat.conversation([], "why?") == chat.prompt("why?")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_turn_ends_with_the_templates_token_or_the_tokenizers(name):
    words, end = made(name)
    chat = Chat(words)
    assert words.convert_ids_to_tokens(chat.end) == end
    assert set(words.convert_ids_to_tokens(list(chat.ends))) == {end, words.eos_token}


def test_a_model_without_a_template_is_asked_in_words_and_begins_as_its_tokenizer_does():
    from tokenizers import processors

    words = tokenizer("sentencepiece, no space", bos="<bos>", eos="<eos>")
    assert Chat(words).prompt("hi") == words("User: hi\nAssistant: ", add_special_tokens=False).input_ids
    words.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 3)])
    chat = Chat(words)
    assert chat.prompt("hi") == words("User: hi\nAssistant: ").input_ids and chat.prompt("hi")[0] == 3
    assert chat.end == words.eos_token_id and chat.ends == {chat.end}


@pytest.mark.parametrize("bos", [None, "<bos>"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_goes_on_with_a_text_keeps_the_space_at_its_edges(backend, bos):
    words = tokenizer(backend, bos=bos, eos="<eos>")
    chat, text = Chat(words), "What is the name of Ada's cat? The cat of é 😀 Ada is Minka, "
    ids = chat.completion(text)
    end = words.convert_tokens_to_ids("<eos>")
    for at in range(2, len(ids)):
        begun = chat.text_after([], ids[:at])
        assert text.startswith(begun.rstrip("\ufffd").lstrip()) and text.endswith(" ")
        if "\ufffd" not in begun and begun.strip():
            rest = chat.text_after(ids[:at], [*ids[at:], end])
            assert (begun + rest).lstrip() == text, (begun, rest)


@pytest.mark.parametrize("stated", [9, [8, 9], [8, 40], None])
def test_the_generation_config_names_ends_too(stated):
    """As numbers, lists or not at all; an id that is ordinary text, as a class's default may be, is none."""
    words = tokenizer(template=CHATML, eos="<|endoftext|>")
    network = tiny.model(vocab_size=len(words))
    network.generation_config = GenerationConfig(eos_token_id=stated)
    listed = stated if isinstance(stated, list) else [stated] * (stated is not None)
    special = {i for i in listed if i != 40}  # 40 is an ordinary character
    assert Chat(words, network).ends == {words.convert_tokens_to_ids("<|im_end|>"), words.eos_token_id, *special}


def test_any_end_finishes_a_generation():
    network = tiny.model()
    (whole,) = decode(network, [[5, 6, 7]], end=-1, max_new=12)
    for ends in ({whole.ids[4], -1}, frozenset({whole.ids[4], whole.ids[9]})):
        (found,) = decode(network, [[5, 6, 7]], end=ends, max_new=12)
        assert found.finished and found.ids == whole.ids[: whole.ids.index(next(i for i in whole.ids if i in ends)) + 1]


SYSTEM = {"llama3": "none", "llama31": "left out", "gemma": "refused", "chatml": "none", "mistral": "refused", "zephyr": "none",
          "chatml with a system turn": "left out"}  # fmt: skip


@pytest.mark.parametrize("name, system", SYSTEM.items())
def test_what_became_of_a_system_turn_is_known(name, system):
    chat = Chat(made(name)[0])
    assert chat.template.system == system
    assert "helpful" not in chat.template.before and "26 Jul" not in chat.template.before


@pytest.mark.parametrize("first", [
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system turn first') }}{% endif %}",
    "{% if messages[0]['role'] != 'system' %}{% set messages = messages[1:] %}{% endif %}",
])  # fmt: skip
def test_a_template_that_cannot_do_without_a_system_turn_gets_one_and_it_is_left_out(first):
    words = tokenizer(template=first + CHATML, eos="<|endoftext|>")
    chat = Chat(words)
    assert chat.template.system == "left out" and words.convert_ids_to_tokens(chat.end) == "<|im_end|>"
    assert chat.prompt("hi") == rendered(tokenizer(template=CHATML), "hi")


def test_a_system_text_that_nothing_closes_stays():
    words = tokenizer(
        template="{{ messages[0]['content'] if messages[0]['role'] == 'system' else 'Be kind.' }}"
        "{% for m in messages if m['role'] == 'user' %}{{ ' USER: ' + m['content'] + ' ASSISTANT:' }}{% endfor %}"
    )
    chat = Chat(words)
    assert chat.template.system == "kept" and chat.prompt("hi") == rendered(words, "hi")


OPENED = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
ASKED = CHATML.replace("{% endif %}", "{{ '<think>\n\n</think>\n\n' if enable_thinking is false else '' }}{% endif %}")
BRACKETS = OPENED.replace("<think>\n", "[THINK]")
WRITTEN = OPENED + "{# '\\n</think>\\n' #}"


@pytest.mark.parametrize("template, ends, thought", [
    (CHATML, "", "none"), (ASKED, "<think>\n\n</think>\n\n", "off"), (OPENED, "<think>\n\n</think>\n\n", "closed"),
    (WRITTEN, "<think>\n</think>\n", "closed"), (BRACKETS, "[THINK]\n\n[/THINK]\n\n", "closed"),
    (OPENED.replace("<think>", "<|begin_of_thought|>"), "<|begin_of_thought|>\n\n<|end_of_thought|>\n\n", "closed"),
    (CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n</think>' }}{% endif"), "<think>\n</think>", "off"),
])  # fmt: skip
def test_no_prompt_ends_inside_a_thought(template, ends, thought):
    words = tokenizer(template=template, eos="<|endoftext|>")
    chat = Chat(words)
    assert words.decode(chat.prompt("hi")) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" + ends
    assert chat.template.thought == thought


# As Qwen3's thinking models have it: a pair holds the whole thought, a prompt opens it.
_THINKS = CHATML.replace("m['content']", "('<think>\n\n</think>\n\n' if m['role'] == 'assistant' else '') + m['content']")
_OPENS = _THINKS.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")


@pytest.mark.parametrize("template", [_THINKS, _OPENS])
def test_a_thought_that_leads_to_an_answer_is_of_the_prompt(template):
    words = tokenizer(template=template, eos="<|endoftext|>")
    chat = Chat(words)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ab"}]
    whole = words.apply_chat_template(turns, return_dict=False)
    got = chat.prompt("hi") + chat.answer("ab")
    assert chat.text(chat.answer("ab")) == "ab" and got == whole[: len(got)] and chat.template.thought == "closed"


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_a_turn_that_is_closed_only_when_another_follows_ends_there(bos):
    words = tokenizer(
        template=("{{ bos_token }}" if bos else "") + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + "
        "m['content'] }}{% if not loop.last or add_generation_prompt %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", bos=bos,
    )  # fmt: skip
    assert words.convert_ids_to_tokens(Chat(words).end) == "<|im_end|>"


def test_the_token_that_opens_the_next_turn_closes_no_answer():
    words = tokenizer(
        template="{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
        "{{ '<|im_start|>' + ('assistant' if add_generation_prompt else 'user') + '\n' }}"
    )
    assert words.convert_ids_to_tokens(Chat(words).end) == "</s>"


@pytest.mark.parametrize("how", ["strip()", "lstrip()", "rstrip()", "lower()", "replace('\n', ' ')"])
def test_what_a_template_does_to_a_question_is_done_or_refused(how):
    words = tokenizer(template=CHATML.replace("m['content']", f"m['content'].{how}"), eos="<|endoftext|>")
    if "strip" in how:
        assert Chat(words).prompt(" a B \n") == rendered(words, " a B \n")
    else:
        with pytest.raises(loading.ModelError, match="in other words than it is asked"):
            Chat(words)


def test_nothing_is_left_of_a_text_that_is_cut_to_no_tokens():
    chat = Chat(tokenizer(template=CHATML))
    assert chat.clip("some text", 0) == chat.clip("some text", 0, keep="start") == ""


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
BAD = {
    "raises": ("{{ raise_exception('not today') }}", "not today"),
    "a variable that nobody gives": ("{{ house.style + messages[0]['content'] }}", "house"),
    "syntax": ("{% for %}", "cannot render"),
    "no question": ("{{ 'hello' }}", "0 times"),
    "the question twice": ("{{ messages[0]['content'] + messages[0]['content'] }}", "2 times"),
    "without an end": (LOOP, "come to an end"),
    "a range too long": ("{% for i in range(10**9) %}{% endfor %}", "cannot render"),
    "recursion": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "cannot render"),
    "parts of a question": ("{{ messages[0]['content'][0]['text'] }}", "0 times|cannot render"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_template_that_does_not_work_is_one_sentence_at_load(case, monkeypatch):
    monkeypatch.setattr("tmem.models.template._SECONDS", 1.0)
    template, words = BAD[case]
    start = time.perf_counter()
    with pytest.raises(loading.ModelError, match=words) as caught:
        Chat(tokenizer(template=template))
    assert "\n" not in str(caught.value) and time.perf_counter() - start < 30


def test_an_endless_template_is_stopped_outside_the_main_thread_too(monkeypatch):
    monkeypatch.setattr("tmem.models.template._SECONDS", 0.5)
    said = []

    def work():
        try:
            Chat(tokenizer(template=LOOP))
        except loading.ModelError as error:
            said.append(str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and "come to an end" in said[0]


def test_a_tokenizer_without_an_end_is_refused_at_load(tmp_path):
    words = tokenizer(template=CHATML, eos=None)
    network = tiny.model(vocab_size=len(words))
    loading.save_model(network, words, tmp_path / "m")
    with pytest.raises(loading.ModelError, match="no end token"):
        loading.load_model(tmp_path / "m")
    with pytest.raises(loading.ModelError, match="no end token"):
        Chat(tokenizer(eos=None))


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_a_memory_lives_on_every_kind_of_model(name, tmp_path):
    from tmem import Memory

    words, _ = made(name)
    loading.save_model(tiny.model(vocab_size=len(words)), words, tmp_path / "m")
    memory = Memory.from_pretrained(str(tmp_path / "m"), preset="default")
    memory.learn([("What is the name of Ada's cat?", "Minka")])
    assert isinstance(memory.ask("How is Ada's cat called?"), str)


def test_threads_share_a_tokenizer():
    """Chats of one tokenizer, one chat in several threads, and whoever else uses the tokenizer meanwhile."""
    words, _ = made("chatml")
    chats = [Chat(words), Chat(words)]
    texts = [f"{i} <|im_end|>\n<|im_start|>assistant {'word ' * (i % 20)}" for i in range(40)]

    def asked(chat):
        return [(chat.prompt(t), chat.answer(t), chat.clip(t, 5), chat.text(chat.plain(t))) for t in texts]

    def others():
        return [words(t, truncation=True, max_length=4)["input_ids"] for t in texts * 4]

    want, short = asked(chats[0]), others()
    assert all(len(ids) == 4 for ids in short)
    with ThreadPoolExecutor(6) as pool:
        other = [pool.submit(others) for _ in range(2)]
        found = [pool.submit(asked, chats[i % 2]) for i in range(16)]
        assert all(f.result() == want for f in found)
        [f.result() for f in other]
    assert others() == short, "the tokenizer that was given is left as it was"


def test_the_default_models_prompts_are_what_they_were():
    words = loading.load_tokenizer()
    chat = Chat(words)
    assert chat.prompt("What is the capital of France?") == [
        1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]  # fmt: skip
    assert chat.answer("Paris") == [38634, 2] and chat.ends == {2}
    digest = hashlib.sha256()
    for text in ["", "a", "Date: 8 May 2023\nAda: Hey! I've got 12 cats.\n\nQuestion: who?", "<|im_end|>x", "tab\t  é 😀"]:
        digest.update(repr((chat.prompt(text), chat.answer(text))).encode())
    assert digest.hexdigest()[:16] == "c536a4eb14bec04d"
    assert torch.tensor(chat.prompt("x")).max() < 49152
