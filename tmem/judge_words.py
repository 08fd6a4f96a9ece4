"""Verdicts in a judge's own words: which word of a reply decides.

A judge may think first, explain itself, and use Markdown, JSON, tags or boxes. The grammar, over NFKC text:

    reply    = thought* said            a thought that is not closed leaves nothing to read
    said     = the verdicts at its places, which must agree, else the reply is none
    place    = the opening word         where the protocol asks for one word: "No, the answer does not say yes"
             | after a label            at the start of a sentence: "Answer: no", "So the final verdict is **yes**."
             | a closing sentence       that holds nothing else: "... as the reference says.\\n\\nyes"
             | a field with such a name of a JSON object: {"label": "WRONG"}, {"verdict": true}
    verdict  = word ((and|or|but)? word)*   as a whole and alone: "yes or no" says both, "yesterday" and "no problem" nothing
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping

_THOUGHT = re.compile(
    r"<(?P<close>/)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|seed:think)\b[^<>]{0,80}>"
    r"|(?P<open2>\[THINK\]|◁think▷|<\|channel>)|(?P<close2>\[/THINK\]|◁/think▷|<channel\|>)",
    re.IGNORECASE,
)
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_BARE_CHANNELS = re.compile(r"\s*analysis(?=[A-Z\W])")  # where the endpoint dropped the special tokens
_FENCE = r"```(?:(?:json|text|plaintext|markdown|md|xml|yaml)(?=\s))?"
_MARKS = re.compile(rf"<\|[^<>|]{{1,40}}\|>|</?\w{{1,40}}/?>|{_FENCE}|\\\w{{1,20}}\{{|\}}")
_SENTENCES = re.compile(r"[.!?;\n\r。！？；…]+")
_LABEL = r"(?:answer|verdict|label|grade|grading|judge?ment|decision|conclusion|result|rating|evaluation|assessment)"
_LEAD = rf"(?:(?:so|thus|therefore|hence|overall|in conclusion|my|the|final|overall)\b\W*){{0,4}}{_LABEL}"
_ALONE = r"(?![-'’]\w)(?=[^\S\n]*(?:$|\n|[^\w\s]))"
_GOES_ON = r"|\s+(?:it|its|the|this|that|they|he|she|there|because|since|as)\b"


def spoken(reply: str) -> str | None:
    """The reply without its thoughts; None where one is not closed, or a judge with channels never came to the final one."""
    if "<|channel|>" in reply:
        finals = [*_FINAL.finditer(reply)]
        return reply[finals[-1].end() :] if finals and "<|channel|>" not in reply[finals[-1].end() :] else None
    if _BARE_CHANNELS.match(reply) and "assistantfinal" in reply:
        return reply.rpartition("assistantfinal")[2]
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
    sentences = [s for s in _SENTENCES.split(text) if re.search(r"\w", s)]
    found = []
    if opening:
        found.append(re.match(rf"\W*{run}(?:{_ALONE}{_GOES_ON})", text))
    found += [re.match(rf"\W*{_LEAD}\b\W*(?:(?:is|was)\b\W*)?{run}{_ALONE}", s) for s in sentences]
    found += [re.fullmatch(rf"\W*{run}\W*", s) for s in sentences[-1:]]
    for place in found:
        if place:
            yield from (words[said] for said in re.findall(word, place["run"]))
