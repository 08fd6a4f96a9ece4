"""Scores of one prediction, all in 0..1.

`f1` and `em` are the plain ones of memory papers: lower case, no ASCII punctuation, single spaces; nothing is stemmed
and articles stay. `official_f1` is LoCoMo's own (snap-research/locomo, task_eval/evaluation.py); `squad_f1` and
`squad_em` are SQuAD's (rajpurkar, evaluate-v2.0.py): as the plain ones, but without a, an, the.
"""

import re
import string
from collections import Counter
from functools import lru_cache

from nltk.stem import PorterStemmer

from tmem.episode import Question

__all__ = [
    "ABSTENTIONS", "abstains", "chosen", "contains", "em", "f1", "intrusion", "normalise", "official_f1", "squad",
    "squad_em", "squad_f1", "token_f1",
]  # fmt: skip

# Words for "the text does not tell"; the first are LoCoMo's gold, and what prompts ask for.
ABSTENTIONS = ("No information available", "Not mentioned", "unknown")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_STEMMER = PorterStemmer()


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, words separated by single spaces."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def token_f1(prediction: list[str], gold: list[str]) -> float:
    """2PR / (P + R) over the multisets of tokens; two empty lists agree, an empty and a non-empty one do not."""
    if not prediction or not gold:
        return float(prediction == gold)
    common = (Counter(prediction) & Counter(gold)).total()
    return 2 * common / (len(prediction) + len(gold))


def f1(prediction: str, question: Question) -> float:
    """Token F1 with the best of the question's answers."""
    tokens = normalise(prediction).split()
    return max(token_f1(tokens, normalise(answer).split()) for answer in question.answers)


def em(prediction: str, question: Question) -> float:
    """1.0 when the normalised prediction equals one of the normalised answers, else 0.0."""
    return float(normalise(prediction) in map(normalise, question.answers))


def contains(prediction: str, question: Question) -> float:
    """1.0 when the prediction says one of the answers as whole words, whatever else it says, else 0.0. Both are normalised."""
    said = f" {normalise(prediction)} "
    return float(any(f" {answer} " in said for answer in filter(None, map(normalise, question.answers))))


def abstains(prediction: str) -> bool:
    """Whether a prediction says, in the words of ABSTENTIONS, that the text does not tell. "unknown" must stand alone."""
    *phrases, word = map(normalise, ABSTENTIONS)
    said = normalise(prediction)
    return said == word or any(phrase in said for phrase in phrases)


def intrusion(prediction: str, question: Question) -> int:
    """1 when the prediction is not right (`em`) and says one of the question's intrusions as whole words, else 0."""
    if em(prediction, question):
        return 0
    said = f" {normalise(prediction)} "
    values = filter(None, map(normalise, question.intrusions))
    return int(any(f" {value} " in said for value in values))


def squad(text: str) -> str:
    """SQuAD's normal form: `normalise` without a, an, the."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", normalise(text)).split())


def squad_f1(prediction: str, question: Question) -> float:
    """Token F1 with the best answer after SQuAD's normalisation: lower case, no punctuation, no a, an, the.

    Of a question without an answer it is 1.0 for an abstention, else 0.0, as in SQuAD 2.0.
    """
    if question.category == "abstention":
        return float(abstains(prediction))
    return max(token_f1(squad(prediction).split(), squad(answer).split()) for answer in question.answers)


def squad_em(prediction: str, question: Question) -> float:
    """1.0 when the prediction equals an answer after SQuAD's normalisation, else 0.0; without an answer as `squad_f1`."""
    if question.category == "abstention":
        return squad_f1(prediction, question)
    return float(squad(prediction) in map(squad, question.answers))


def chosen(prediction: str, question: Question) -> str:
    """The text of the choice that a letter names, alone ("b", "(a)", "B.") or before it; any other prediction as it is."""
    letter = re.fullmatch(r"\(?([ab])\)?[.:]?(.*)", prediction.strip(), re.IGNORECASE | re.DOTALL)
    if not letter or not question.choices:
        return prediction
    choice = question.choices["ab".index(letter[1].lower())]
    return choice if normalise(letter[2]) in ("", normalise(choice)) else prediction


_stem = lru_cache(maxsize=65536)(_STEMMER.stem)


def _official_tokens(text: str) -> list[str]:
    words = re.sub(r"\b(a|an|the|and)\b", " ", normalise(text)).split()
    return [_stem(word) for word in words]


def _official_token_f1(prediction: str, gold: str) -> float:
    """As in the official code, nothing in common is 0, also when both are empty."""
    return token_f1(tokens, _official_tokens(gold)) if (tokens := _official_tokens(prediction)) else 0.0


def official_f1(prediction: str, question: Question) -> float:
    """LoCoMo's score for `question.category` "1" to "5", over stemmed tokens without a, an, the, and.

    1 (multi-hop): both sides are split at commas; mean over the golds of the best F1 of any predicted part.
    2, 4: F1 of the whole strings. 3: the same, the gold cut at its first ";".
    5 (adversarial): 1.0 if the prediction contains "no information available" or "not mentioned", nothing else counts.
    Where the question offers two `choices`, a bare letter stands for its choice.
    Raises ValueError for any other category.
    """
    gold = question.answers[0]
    match question.category:
        case "1":
            parts = prediction.split(",")
            golds = gold.split(",")
            return sum(max(_official_token_f1(part, g) for part in parts) for g in golds) / len(golds)
        case "2" | "4":
            return _official_token_f1(prediction, gold)
        case "3":
            return _official_token_f1(prediction, gold.split(";")[0])
        case "5":
            said = chosen(prediction, question).lower()
            return float("no information available" in said or "not mentioned" in said)
    raise ValueError(f"official_f1: question {question.id} has category {question.category!r}, expected '1' to '5'")
