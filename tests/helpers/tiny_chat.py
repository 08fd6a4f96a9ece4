"""Tiny tokenizers of the shapes that real ones have, and the templates of real models in short."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONTROLS = [
    "<unk>", "<s>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|eot_id|>",    "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
]  # fmt: skip
TEXT = ["What is the name of Ada's cat? The cat of Ada is Minka, says the user.\n\nYou are an assistant; 12 model [INST]"] * 3


def _byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=360, special_tokens=CONTROLS, initial_alphabet=alphabet))
    return backend


def _sentencepiece(normalizer=None, pre_tokenizer=None):
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=120))
    pieces = [p for p, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1])]
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    vocabulary = {t: i for i, t in enumerate([*CONTROLS, *(f"<0x{b:02X}>" for b in range(256)), *pieces])}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _space(*first):
    return normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])


BACKENDS = {
    "byte-level": _byte_level,  # Llama 3, Qwen, SmolLM2
    "sentencepiece, a space before each segment": lambda: _sentencepiece(_space(normalizers.Prepend("▁"))),  # Llama 2 of old
    "sentencepiece, a space before the first": lambda: _sentencepiece(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "sentencepiece, always a space": lambda: _sentencepiece(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always")),
    "sentencepiece, no space": lambda: _sentencepiece(_space()),  # Gemma
}


def tokenizer(backend="byte-level", template=None, *, bos=None, eos="</s>", plain=()):
    """plain: control tokens that the files do not call special."""
    backend = BACKENDS[backend]()
    backend.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in CONTROLS if c not in plain])
    backend.add_tokens([AddedToken(c, special=False, normalized=False) for c in plain])
    roles = {"bos_token": bos, "eos_token": eos, "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **roles)


_TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
_BEGIN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_ALONE = "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
CHATML = _TURNS + _BEGIN
TEMPLATES = {  # name -> template, the tokenizer's bos and eos, the token that ends a turn
    "llama3": (
        "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + "
        "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
    ),
    "llama31": (
        "{{ bos_token }}{% set s = '' %}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday 26 Jul\n\n' + s + '<|eot_id|>' }}"
        "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}" + _ALONE +
        "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<bos>", "<eos>", "<end_of_turn>",
    ),
    "chatml": (CHATML, None, "<|endoftext|>", "<|im_end|>"),
    "chatml with a system turn": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}" + CHATML,
        "<|im_start|>", "<|im_end|>", "<|im_end|>",
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else ' ' + m['content'] + eos_token }}{% endfor %}",
        "<s>", "</s>", "</s>",
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        "<s>", "</s>", "</s>",
    ),
    "no token at the end": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
        None, "</s>", "</s>",
    ),
    "no assistant's turn": (
        "{% for m in messages if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}",
        None, "</s>", "</s>",
    ),
}  # fmt: skip
