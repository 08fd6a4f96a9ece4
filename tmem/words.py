"""When two texts are the same question or name the same things: the form in which they are compared."""

import re

_FUNCTION_WORDS = frozenset(
    "a an the is are was were do does did has have had of s to in on at for with by from and or it its what which who whom "
    "whose when where how that this her his their".split()
)
POLAR = ("yes", "no")  # answers that stand in no text


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces: two questions with the same form are the same question."""
    return " ".join(re.findall(r"\w+", text.lower()))


def content(text: str) -> frozenset[str]:
    """The words of a text that carry its meaning, in lower case: all but function words."""
    return frozenset(normalise(text).split()) - _FUNCTION_WORDS
