"""The tokenizer that a GGUF file describes."""

from __future__ import annotations

import math

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = _TEKKEN.replace("]+|", f"]+{_ENDING}|", 1).replace("]*|\\p{N}", f"]*{_ENDING}|\\p{{N}}{{1,3}}", 1)
# How `tokenizer.ggml.pre` says that text is cut before byte-level BPE: a pattern of pieces, or None for GPT-2's own, and
# whether a piece that is a token is taken without merging.
_CUTS = {
    **dict.fromkeys(("default", "gpt-2", "jina-es", "jina-v2-code", "mpt", "olmo", "phi-2", "roberta-bpe"), (None, False)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), (_LLAMA3, True)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), (_LLAMA3, False)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), (_LLAMA3.replace("{1,3}", ""), False)),
    "tekken": (_TEKKEN, True),
    "gpt-4o": (_O200K, False),
}
# The same, with every digit cut out before.
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva", "minerva-7b")
# Of these, the ones whose texts begin with the token for it where nothing is said.
_BEGUN = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # GGUF's name by transformers'
_NORMAL, _CONTROL, _OF_USER = 1, 3, 4  # tokenizer.ggml.token_type; 2 is unknown, 5 unused, 6 a byte


def tokenizer_of(fields: dict, longest: int):
    """A `PreTrainedTokenizerFast` from a file's metadata; `longest`: the model's context.

    Raises ValueError for what is absent or of a kind that is not read.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = _list(fields, "tokens", str)
    kinds = _list(fields, "token_type", int) if "tokenizer.ggml.token_type" in fields else [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        counts = f"{len(tokens)} tokens, {len(set(tokens))} of them different, and {len(kinds)} types"
        raise ValueError(f"it has {counts}; get the file anew.")
    kind = fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(fields, tokens)
    elif kind == "llama":
        backend = _sentencepiece(fields, tokens, kinds)
    else:
        raise ValueError(f"tokenizer.ggml.model is {kind!r}, expected 'gpt2' or 'llama'; choose another model.")
    roles = {f"{role}_token": _token(fields, tokens, name) for role, name in _ROLES.items()}
    roles["eos_token"] = roles["eos_token"] or _token(fields, tokens, "eot")
    if roles["eos_token"] is None:
        raise ValueError("tokenizer.ggml.eos_token_id, the token that ends a text, is not in it; get the file anew.")
    template = fields.get("tokenizer.chat_template")
    if not isinstance(template, (str, type(None))):
        raise ValueError("tokenizer.chat_template is no text; get the file anew.")
    _add(backend, tokens, kinds, [_token(fields, tokens, name) for name in ("eot", "eom")])
    if _flag(fields, "add_bos_token", kind == "llama" or fields.get("tokenizer.ggml.pre") in _BEGUN):
        _begin_with(backend, roles["bos_token"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, model_max_length=longest, **roles,
        clean_up_tokenization_spaces=False,  # it would drop spaces that the model wrote
    )  # fmt: skip


def _list(fields: dict, name: str, kind: type) -> list:
    found = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not found or not all(isinstance(x, kind) for x in found):
        raise ValueError(f"tokenizer.ggml.{name} is not a list of {kind.__name__}; get the file anew.")
    return found


def _flag(fields: dict, name: str, default: bool) -> bool:
    value = fields.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise ValueError(f"tokenizer.ggml.{name} is {value!r}, expected true or false; get the file anew.")
    return value


def _token(fields: dict, tokens: list[str], name: str) -> str | None:
    """The token that has a role; None for a role that the file gives to none, which some write as -1."""
    index = fields.get(f"tokenizer.ggml.{name}_token_id")
    if index in (None, -1, 2**32 - 1):
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise ValueError(f"tokenizer.ggml.{name}_token_id is {index!r}, and there are {len(tokens)} tokens; get the file anew.")
    return tokens[index]


def _merges(fields: dict) -> list[tuple[str, str]]:
    merges = [tuple(pair.split(" ")) for pair in _list(fields, "merges", str)]
    if any(len(pair) != 2 for pair in merges):
        raise ValueError("tokenizer.ggml.merges holds what is no pair; get the file anew.")
    return merges


def _byte_level(fields: dict, tokens: list[str]):
    """BPE over bytes, as GPT-2, Llama 3, Qwen and SmolLM have it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    cut = fields.get("tokenizer.ggml.pre", "default")
    pattern, whole = None, False
    if cut in _DIGITS_APART:
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif cut in _CUTS:
        pattern, whole = _CUTS[cut]
        first = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    else:
        raise ValueError(f"its tokenizer cuts text as {cut!r} (tokenizer.ggml.pre), which is not read; choose another model.")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, _merges(fields), ignore_merges=whole))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(fields: dict, tokens: list[str], kinds: list[int]):
    """BPE over characters with "▁" for a space, as Llama 2, Mistral and Gemma have it; the better score is merged first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(isinstance(s, float) for s in scores):
        raise ValueError(f"tokenizer.ggml.scores is not a list of {len(tokens)} numbers; get the file anew.")
    if not all(map(math.isfinite, scores)):
        raise ValueError("tokenizer.ggml.scores holds what is not finite; get the file anew.")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pieces = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind == _NORMAL}
    found = [
        (-scores[i], i, pieces[t[:cut]], (t[:cut], t[cut:]))
        for t, i in pieces.items() for cut in range(1, len(t)) if t[:cut] in pieces and t[cut:] in pieces
    ]  # fmt: skip
    backend = Tokenizer(models.BPE(
        vocabulary, [pair for *_, pair in sorted(found)], fuse_unk=True, byte_fallback=True,
        unk_token=_token(fields, tokens, "unknown"),
    ))  # fmt: skip
    prefix = _flag(fields, "add_space_prefix", True)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return backend


def _add(backend, tokens: list[str], kinds: list[int], ends: list[str | None]) -> None:
    """Tell which tokens are found in a text before it is cut: control tokens, ends, and those that a user defined."""
    from tokenizers import AddedToken

    control = [t for t, kind in zip(tokens, kinds) if kind == _CONTROL or t in ends]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    backend.add_tokens(
        [AddedToken(t, normalized=False, special=False) for t, kind in zip(tokens, kinds) if kind == _OF_USER and t not in ends]
    )


def _begin_with(backend, bos: str | None) -> None:
    from tokenizers import processors

    if bos is not None:
        place = (bos, backend.token_to_id(bos))
        backend.post_processor = processors.TemplateProcessing(f"{bos}:0 $A:0", f"{bos}:0 $A:0 $B:1", [place])
