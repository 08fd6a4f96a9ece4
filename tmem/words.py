"""Texts: whether one is sound, and when two are the same question or name the same things."""

import re
import unicodedata

_FUNCTION_WORDS = frozenset(
    "a an the is are was were do does did has have had of s to in on at for with by from and or it its what which who whom "
    "whose when where how that this her his their".split()
)
POLAR = ("yes", "no")  # answers that stand in no text
# Words, signs that tell questions apart (C, C# and C++; 7 + 3 and 7 * 3), a star that is no emphasis, a minus before a number
# that is no hyphen behind a word.
_TELLING = re.compile(r"\w+|[#%&@+<=>^|~$]|(?<=\w)\*(?=\w)|(?<=\s)\*(?=\s)|(?<![^\W\d])-(?=\s*\d)")
_ALIKE = {**dict.fromkeys((0x2010, 0x2011, 0x2013, 0x2212), "-"), 0xFE0E: None, 0xFE0F: None}  # dashes; forms of a picture
_SIGNS = ("Sm", "Sc", "So")  # Unicode's categories of mathematical signs, currencies and pictures


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces: the form in which answers and texts are compared."""
    return " ".join(re.findall(r"\w+", text.lower()))


def identity(question: str) -> str:
    """Two questions with the same form are the same question: case, spaces and punctuation do not count.

    Signs do, and marks on letters, such as the vowels of Hindi.
    """
    text = unicodedata.normalize("NFC", question).casefold().translate(_ALIKE)
    return " ".join(_TELLING.findall(text if text.isascii() else "".join(map(_as_words, text))))


def _as_words(character: str) -> str:
    """A mark as part of its word, a sign as a word of its own: what the pattern of words would pass over."""
    kind, name = unicodedata.category(character), f"_{ord(character):x}_"
    return character if character.isascii() else name if kind[0] == "M" else f" {name} " if kind in _SIGNS else character


def content(text: str) -> frozenset[str]:
    """The words of a text that carry its meaning, in lower case: all but function words."""
    return frozenset(normalise(text).split()) - _FUNCTION_WORDS


def sound(text: str) -> bool:
    """Whether UTF-8 has bytes for it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole(where: str, text: str) -> str:
    """The text. Raises ValueError where it is not sound."""
    if not sound(text):
        raise ValueError(f"{where} holds half of a surrogate pair, which is no character; send valid Unicode.")
    return text
