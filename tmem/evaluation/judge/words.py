"""Verdicts in a judge's own words: which word of a reply decides.

A judge may think first, explain itself, and use Markdown, JSON, tags or boxes. The grammar, over NFKC text:

    reply    = thought* said            a thought that is not closed leaves nothing to read
    said     = the verdicts at its places, which must agree, else the reply is none
    place    = the opening word         where the protocol asks for one word: "No, the answer does not say yes";
                                        elsewhere where there is no other place, and alone: "WRONG. It was June."
             | after a label            at the start of a sentence: "Answer: no", "So the final verdict is **yes**."
             | a closing sentence       that holds no other claim: "... as the reference says. So I would say yes"
             | a field with such a name of a JSON object: {"label": "WRONG"}, {"verdict": true}
    verdict  = word ((and|or|but)? word)*   as a whole and alone: "yes or no" says both, "yesterday" and "no problem" nothing

What the graded answer or the reference says is no verdict: "The answer is yes, but the reference says no", "Reference: no.
Answer: yes".
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping

_THOUGHT = re.compile(
    r"<(?P<close>/)?(?:\w{1,20}[:_])?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)\b[^<>]{0,80}>"
    r"|(?P<open2>\[THINK\]|◁think▷|<\|channel>|<\|(?:start|begin)_(?:of_)?(?:thinking|thought)\|>)"
    r"|(?P<close2>\[/THINK\]|◁/think▷|<channel\|>|<\|end_(?:of_)?(?:thinking|thought)\|>)",
    re.IGNORECASE,
)
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z])")  # where the endpoint dropped the special tokens
_FENCE = r"```(?:(?:json|text|plaintext|markdown|md|xml|yaml)(?=\s))?"
_MARKS = re.compile(rf"<\|[^<>|]{{1,40}}\|>|</?\w{{1,40}}/?>|\[/?inst\]|{_FENCE}|\\\w{{1,20}}\{{|\}}")
_SENTENCES = re.compile(r"[.!?;\n\r。！？；…]+")
_NAMES = r"(?:verdict|label|grade|grading|judge?ment|decision|conclusion|result|rating|evaluation|assessment|correctness)"
_LABEL = rf"(?:answer|{_NAMES})"
_SO = r"(?:so|thus|therefore|hence|overall|in conclusion)"
_LEAD = rf"(?:(?:{_SO}|my|the|final)\b\W{{0,9}}){{0,4}}"
_IS = r"is\b(?:\W{1,9}(?:therefore|thus|hence|clearly|also)\b)?(?:\W{1,9}an?\b)?"
_ALONE = r"(?![-'’]\w)(?=[^\S\n]*(?:$|\n|[^\w\s]))"
_GOES_ON = r"|\s+(?:it|its|the|this|that|they|he|she|there|because|since|as)\b"
# What a judge says before its verdict that claims nothing.
_TURN = rf"(?:{_SO}|sure|well|okay|ok|hmm+|clearly|absolutely|definitely|actually|finally)"
_SAY = (
    r"(?:i(?:['’]d|['’]ll| would| will| must)?\s+(?:say|answer|go with|conclude|reply|"
    r"(?:mark|rate|grade|label|judge)(?:\s+(?:it|this|that))?(?:\s+as)?)"
    rf"|(?:it|this|that)(?:['’]s|\s+{_IS})(?:\s+an?)?)"
)
_BASIS = re.compile(r"\W{0,9}(?:based on|according to|after|considering|to be honest)\b[^,:]{0,200}[,:]")
_QUOTED = re.compile(r"\W{0,9}(?:(?:the|my)\s+)?(?:reference|gold|expected|ground truth)\b[\w ]{0,20}[:=]")  # a form filled in


def spoken(reply: str) -> str | None:
    """The reply without its thoughts; None where one is not closed, or a judge with channels never came to the final one."""
    if "<|channel|>" in reply:
        finals = [*_FINAL.finditer(reply)]
        return reply[finals[-1].end() :] if finals and "<|channel|>" not in reply[finals[-1].end() :] else None
    if _BARE_CHANNEL.match(reply) or "assistantfinal" in reply:
        _, final, said = reply.rpartition("assistantfinal")
        return said if final else None
    kept, thinks, at = [], False, 0
    for tag in _THOUGHT.finditer(reply):
        if tag["close"] or tag["close2"]:
            kept = kept if thinks else []  # the prompt had opened it
            thinks, at = False, tag.end()
        elif not thinks:
            kept.append(reply[at : tag.start()])
            thinks = True
    return None if thinks else "\n".join([*kept, reply[at:]])


def verdict(reply: str, words: Mapping[str, float], *, opening: bool) -> float | None:
    """What the word that decides stands for; None where there is none, or where they disagree. words: in lower case."""
    text = spoken(reply)
    if text is None:
        return None
    text = unicodedata.normalize("NFKC", text)
    found = json_object(text)
    votes = set()
    if found is not None:
        text = text[: text.find("{")] + "\n" + text[text.rfind("}") + 1 :]
        votes.update(_fields(found, words, opening))
    votes.update(_places(text, words, opening))
    return votes.pop() if len(votes) == 1 else None


def json_object(text: str) -> dict | None:
    """The JSON object that stands in the text, whatever is around it."""
    try:
        found = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _fields(found: dict, words: Mapping[str, float], opening: bool) -> Iterator[float]:
    for name, value in found.items():
        if re.fullmatch(rf"(?:\w*_)?(?:{_LABEL}|correct|is_correct|yes)", name.strip().lower()):
            if isinstance(value, bool):
                yield float(value)
            elif isinstance(value, str):
                yield from _places(unicodedata.normalize("NFKC", value), words, True)


def _places(text: str, words: Mapping[str, float], opening: bool) -> Iterator[float]:
    word = rf"\b(?:{'|'.join(words)})\b"
    run = rf"(?P<run>{word}(?:\W{{0,9}}(?:\b(?:and|or|but|and/or)\b\W{{0,9}})?{word})*)"
    text = _MARKS.sub("\n", text.lower().replace("_", " "))
    text = re.sub(rf"(?m)^([^\w\n]{{0,9}}{_LEAD}{_LABEL}[^\w\n]{{0,9}})$\s+", r"\1: ", text)  # a heading and what is under it
    sentences = [_BASIS.sub("", s, count=1) for s in _SENTENCES.split(text) if re.search(r"\w", s)]
    if sentences and re.match(rf"\W*{_SO}\b", last := sentences[-1].rpartition(",")[2]):
        sentences.append(last)
    quoted, differs = any(map(_QUOTED.match, sentences)), len({words[w] for w in re.findall(word, text)}) > 1
    concluding = rf"(?:the\W{{1,9}})?(?:{_SO}|my|final)\b\W{{0,9}}{_LEAD}"
    stated = rf"\W*{_LEAD}(?:{_NAMES if quoted else _LABEL}|final|overall)[^\w\n'\"’”]*[:=–—-]\W*{run}{_ALONE}"
    called = rf"\W*(?:{concluding}answer|{_LEAD}{_NAMES if differs else _LABEL})\W{{1,9}}{_IS}\W*{run}(?:{_ALONE}{_GOES_ON})"
    closing = rf"\W*(?:{_TURN}\W{{1,9}}){{0,3}}(?:{_SAY}\W{{1,9}})?{run}\W*"
    found = [re.match(rf"\W*{run}(?:{_ALONE}{_GOES_ON})", text)] if opening else []
    found += [re.match(form, s) for s in sentences for form in (stated, called)]
    found += [re.fullmatch(closing, s) for s in sentences[-1:]]
    if not opening and not any(found):
        found = [re.match(rf"\W*{run}\W*(?:$|[.,;!\n–—])", text)]
    for place in found:
        if place:
            yield from (words[said] for said in re.findall(word, place["run"]))
