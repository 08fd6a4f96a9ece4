"""What a model's chat template writes around a question and an answer."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .loading import ModelError

_MARK, _REPLY = "\u241e", "\u241f"  # characters that no template contains
_SECONDS = 10.0  # of computing that a template may take; real ones take a few milliseconds
# A tag that opens a thought: <think>, [THINK], <|begin_of_thought|> and the like.
_THOUGHT = re.compile(r"[<\[◁](?!/)[^<>\[\]◁▷\s/]*(?:think|thought|reason)[^<>\[\]◁▷\s/]*[>\]▷]", re.IGNORECASE)


class _Endless(ModelError):
    """A template that is not tried again."""


class Template:
    """The template's text around one question: `before` it and `after` it, up to where the assistant's answer begins.

    lead     what it writes between there and an answer
    closing  what it writes after an answer; empty where it writes none, or knows no assistant's turn
    between  what it writes between an answer and the next question; empty where it knows no such conversation
    content  what it writes of a question: the text, or the text without white space at one end or both
    system   of a system turn: "none" where it is written only when asked for, "left out" where the template adds one by itself
             and it is left out here, "kept" where that cannot be told from the rest, "refused" where the template takes none
    thought  "none", "off" where the template closes it when asked to, "closed" where that is done here
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        user = {"role": "user", "content": _MARK}
        asked = [user]
        if (whole := self._tried(asked)) is None or whole.count(_MARK) != 1:
            asked = [{"role": "system", "content": ""}, user]  # some cannot do without
            whole = self._tried(asked)
        if whole is None or whole.count(_MARK) != 1:
            times = self._rendered([user]).count(_MARK)
            raise ModelError(f"the model's chat template writes a question {times} times, expected once; choose another model.")
        self._whole = whole
        self.content = self._content(asked, whole)
        before, after = whole.split(_MARK)
        self.before, self.system = self._without_system(before, user)
        lead, self.closing = self._answered(asked)
        self.between = self._between(asked)
        self.after, self.thought, self.lead = self._outside_thought(after, lead)

    def _rendered(self, turns: list[dict], begin: bool = True) -> str:
        """Raises ModelError where the template fails or does not come to an end."""
        try:
            with _limited(_SECONDS):
                return self._tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=begin,
                    enable_thinking=False, thinking=False,  # templates that do not know them ignore them
                )  # fmt: skip
        except TimeoutError as error:
            raise _Endless(f"the model's chat template {error}; choose another model.") from error
        except Exception as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"the model's chat template cannot render a question: {why}; choose another model.") from error

    def _tried(self, turns: list[dict], begin: bool = True) -> str | None:
        """None where the template refuses such turns, as some do with a system's."""
        try:
            return self._rendered(turns, begin)
        except _Endless:
            raise
        except ModelError:
            return None

    def _content(self, asked: list[dict], whole: str) -> Callable[[str], str]:
        """Raises ModelError where the template changes more of a question than its ends."""
        text = f" {_MARK} Aa\n\n &<b>\"'{{{{x}}}} {_MARK} "
        written = self._tried([*asked[:-1], {"role": "user", "content": text}])
        for content in (str, str.strip, str.lstrip, str.rstrip):
            if written == whole.replace(_MARK, content(text)):
                return content
        raise ModelError("the model's chat template writes a question in other words than it is asked; choose another model.")

    def _without_system(self, before: str, user: dict) -> tuple[str, str]:
        """What stands before the question, without a system turn that nobody asked for.

        Asked for, such a turn is opened, holds its text, and is closed with a control token before the user's turn opens: where
        what was not asked for begins and ends in the same way, it is that turn.
        """
        asked = self._tried([{"role": "system", "content": _REPLY}, user])
        if asked is None or asked.count(_REPLY) != 1 or asked.count(_MARK) != 1:
            return before, "refused"
        opening, rest = asked.split(_REPLY)
        closing = rest.split(_MARK)[0]
        bos = self._tokenizer.bos_token or ""
        inner = len(before) - len(opening) - len(closing)
        if not (before.startswith(opening) and before.endswith(closing) and inner >= (opening in ("", bos))):
            return before, "none"
        controls = sorted((t.content for t in self._tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        ends = next((c for c in controls if closing.startswith(c)), None)
        if ends is None:
            return before, "kept"
        kept = closing[len(ends) :].lstrip("\n")
        if bos and before.startswith(bos) and not kept.startswith(bos):
            kept = bos + kept  # a model that was taught with it answers badly without it
        return kept, "left out"

    def _answered(self, asked: list[dict]) -> tuple[str, str]:
        whole = self._tried([*asked, {"role": "assistant", "content": _REPLY}], begin=False)
        if whole is None or whole.count(_REPLY) != 1:
            return "", ""
        before, closing = whole.split(_REPLY)
        lead = before.removeprefix(self._whole) if before.startswith(self._whole) else ""
        opening = self.before.removeprefix(self._tokenizer.bos_token or "")
        if not closing:  # some close a turn when another follows
            more = self._tried([*asked, {"role": "assistant", "content": _REPLY}, asked[-1]], begin=False) or ""
            rest = more.rpartition(_REPLY)[2].partition(_MARK)[0]
            closing = rest if rest.endswith(opening) else ""
        return lead, closing.removesuffix(opening)

    def _between(self, asked: list[dict]) -> str:
        whole = self._tried([*asked, {"role": "assistant", "content": _REPLY}, asked[-1]]) or ""
        if whole.count(_REPLY) != 1 or whole.count(_MARK) != 2:
            return ""
        return whole.partition(_REPLY)[2].partition(_MARK)[0]

    def _outside_thought(self, after: str, lead: str) -> tuple[str, str, str]:
        """The opening of the assistant's turn, with a thought that it opens closed at once, as the template writes the end:
        in front of an answer, or else anywhere. And what then leads to an answer."""
        opened = list(_THOUGHT.finditer(after + lead))
        if not opened:
            return after, "none", lead
        tag = opened[-1][0]
        close = tag.replace("begin", "end").replace("start", "end") if re.search("begin|start", tag) else f"{tag[0]}/{tag[1:]}"
        if close in after[opened[-1].end() :]:
            return after, "off", lead
        if close in (after + lead)[opened[-1].end() :]:
            return after + lead, "closed", ""
        source = str(self._tokenizer.chat_template).replace("\\n", "\n")
        written = max(re.findall(rf"\n*{re.escape(close)}\n*", source), key=len, default="")
        if "\n" not in written:
            written = f"\n\n{close}\n\n"
        return after.rstrip("\n") + written, "closed", lead


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Stop Python code that a template was compiled to after so much computing time of this thread.

    By the interpreter's trace, which sees every line of it: a signal works in the main thread alone.
    """
    end = time.thread_time() + seconds

    def watch(frame, event, argument):
        if time.thread_time() > end:
            raise TimeoutError(f"does not come to an end within {seconds:g} s of computing")
        return watch if frame.f_code.co_filename.startswith("<") else None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
