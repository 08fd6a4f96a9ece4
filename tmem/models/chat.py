"""Turn questions, pairs and passages into tokens with the model's own chat template, without its system turn.

The system turn says nothing about the task and would double the length of a question/answer pair.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Mapping, Sequence

from .loading import ModelError, end_ids
from .template import Template

_PLAIN = "User: ", "\nAssistant: "  # of a model without a template
# Stands before text whose place in the prompt matters, and is cut off again: in no vocabulary is it merged with a neighbour.
_GUARD = "\ue000"
_NEAR = 8  # tokens before a text that decide how it begins: the first of a text may lose its space


class Chat:
    """Renders one user turn and the opening of the assistant's.

    ends: token ids that end an answer: the tokenizer's, the model's generation config's and the template's.
    end: the one that closes an answer to be learned: what the template writes after the assistant's turn.

    Ids are those of the rendered whole. A tokenizer cuts a text at control tokens first, so a prompt is what stands before the
    last control token in front of the text, the part with the text, and what comes after.

    Threads may share it. How a tokenizer cuts, truncates and pads is state that every call sets, so this one has its own, and
    one thread at a time uses it.
    """

    def __init__(self, tokenizer, model=None):
        """model: whose generation config may name further ends. Raises ModelError for a template that does not render."""
        self.tokenizer = tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self._guard: list[int] = []
        self.template = Template(tokenizer) if tokenizer.chat_template else None
        if self.template is None:
            self._front, self._back, self._tail, self._lead = self._first(), [], _PLAIN[1], ""
            self._around, self._again = _PLAIN, ([], f"\n{_PLAIN[0]}")
            closing = None
        else:
            closing = self._cut(self.template)
        eos = tokenizer.eos_token_id
        self.end: int = eos if closing is None else closing
        if self.end is None:
            raise ModelError("the tokenizer has no end token, nor does the chat template close answers; set eos_token.")
        control = getattr(tokenizer, "added_tokens_decoder", {})
        # Where the files state none, this is a default of the model's class: it counts where it is a control token at all.
        named = [] if model is None else end_ids(model.generation_config)
        self.ends = frozenset({self.end, *([] if eos is None else [eos]), *(i for i in named if i in control)})

    def _first(self) -> list[int]:
        """What the tokenizer itself puts before a text: its token for the beginning, or nothing."""
        if self.tokenizer.bos_token is None:
            return []
        return [i for i in self._encoded("")["input_ids"][:1] if i == self.tokenizer.bos_token_id]

    def _cut(self, template: Template) -> int | None:
        """Take the rendered template apart; the id of the control token that closes the assistant's turn, if one does."""
        known, written = self.tokenizer.added_tokens_decoder, template.before + template.after + template.closing
        self._protect([t for t in known.values() if not t.special and t.content in written])
        ids, found = self._controls(template.before)
        last = found[-1] if found else None  # the control token in front of the text
        self._front, begin = ([], 0) if last is None else (ids[: last[0] + 1], last[2])
        _, found = self._controls(template.after)
        first, tail = (found[0][1], found[-1][2]) if found else (len(template.after), 0)
        self._back, self._around = self._control(template.after[first:]), (template.before[begin:], template.after[:first])
        self._tail, self._lead = template.after[tail:], template.lead
        between = template.between or template.closing + template.before
        ids, found = self._controls(between)
        last = found[-1] if found else None
        self._again = ([], between) if last is None else (ids[: last[0] + 1], between[last[2] :])
        self._guard = self._guard_after(self._front)
        ids, found = self._controls(template.closing)
        if found and not template.closing[: found[0][1]].strip():
            return ids[found[0][0]]
        return None

    def _protect(self, tokens: Sequence) -> None:
        """A token that the template writes is a control token, whatever the files call it: text must not spell it."""
        from tokenizers import AddedToken

        special = [AddedToken(t.content, special=True, normalized=False) for t in tokens]
        if special:
            self.tokenizer.add_tokens(special, special_tokens=True)

    def _controls(self, text: str) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Ids of template text; of every control token its index among them, and the characters where it starts and stops."""
        found = self._encoded(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, control = found["input_ids"], self.tokenizer.added_tokens_decoder
        return ids, [(i, *span) for i, (index, span) in enumerate(zip(ids, found["offset_mapping"])) if index in control]

    def _guard_after(self, front: Sequence[int]) -> list[int]:
        """What text behind these tokens is cut with, where it is not cut as at the beginning (SentencePiece's space)."""
        if not front:
            return []
        control = self.tokenizer.added_tokens_decoder[front[-1]].content
        after, probe = self._control(f"{control}ab ab")[1:], self.plain("ab ab")
        if after == probe:
            return []
        guard = self.plain(_GUARD)
        if self._inside("ab ab", guard) != after:
            raise ModelError("the tokenizer cuts text after a control token by a rule of its own; choose another model.")
        return guard

    def _control(self, text: str) -> list[int]:
        """Ids of template text, control tokens among them."""
        return self._encoded(text, add_special_tokens=False)["input_ids"]

    def _inside(self, text: str, guard: Sequence[int] | None = None) -> list[int]:
        """Ids of ordinary text that follows a control token."""
        guard = self._guard if guard is None else guard
        return self.plain(_GUARD + text)[len(guard) :] if guard else self.plain(text)

    def _encoded(self, text: str, **how: bool) -> Mapping:
        with self._lock:
            return self.tokenizer(text, verbose=False, **how)

    def _decoded(self, ids: list[int], **how: bool) -> str:
        with self._lock:
            return self.tokenizer.decode(ids, **how)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a user turn with `text`, ready for the assistant's answer."""
        text = text if self.template is None else self.template.content(text)
        return self._front + self._inside(self._around[0] + text + self._around[1]) + self._back

    def conversation(self, before: Sequence[tuple[str, str]], text: str) -> list[int]:
        """Token ids of a user turn with `text` after a conversation, pairs of what the user and what the assistant said, each
        in turns of its own. Without a conversation it is `prompt`."""
        if not before:
            return self.prompt(text)
        ids = self.prompt(before[0][0])
        for (_, answered), then in zip(before, [*(asked for asked, _ in before[1:]), text]):
            front, opening = self._again
            content = then if self.template is None else self.template.content(then)
            following = opening + content + self._around[1]
            if front:
                ids += self.said(answered) + front + self._inside(following, self._guard_after(front)) + self._back
            else:
                ids += self.said(answered + following) + self._back
        return ids

    def completion(self, text: str) -> list[int]:
        """Token ids of a text that the model goes on with, without a chat's turns, after the tokenizer's own beginning."""
        return self._first() + self.plain(text)

    def plain(self, text: str) -> list[int]:
        """Token ids of ordinary text: a control token spelled out in it stays ordinary characters."""
        return self._encoded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def said(self, text: str) -> list[int]:
        """Token ids of what the assistant says after a prompt."""
        opened = self._inside(self._tail)
        ids = self._inside(self._tail + self._lead + text)
        return ids[len(opened) :] if ids[: len(opened)] == opened else self.plain(self._lead + text)

    def answer(self, text: str) -> list[int]:
        """Token ids of an assistant's answer, with its closing token."""
        return self.said(text) + [self.end]

    def text(self, ids: list[int]) -> str:
        """Generated ids back to text, without control tokens."""
        return self._decoded([i for i in ids if i not in self.ends], skip_special_tokens=True).strip()

    def text_after(self, before: list[int], ids: list[int]) -> str:
        """Generated ids as text that goes on with the text of `before`: as `text`, but space at its edges stays."""
        near = before[-_NEAR:]
        text = self._decoded(near + [i for i in ids if i not in self.ends], skip_special_tokens=True)
        return text[len(self._decoded(near, skip_special_tokens=True)) :]

    def words(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The words of a text, letters and digits in a row, each with the places of the tokens that it is written in."""
        text, spans = "", []
        for i in range(1, len(ids) + 1):
            begun = len(spans)  # the first token of characters that have yet to be whole
            new = self.text_after(list(ids[:begun]), list(ids[begun:i]))
            if not new.endswith("\ufffd") or i == len(ids):
                spans += [(len(text), len(text) + len(new))] * (i - begun)
                text += new
        found = ((word[0], word.span()) for word in re.finditer(r"\w+", text))
        return [(word, [i for i, at in enumerate(spans) if at[0] < stop and at[1] > start]) for word, (start, stop) in found]

    def clip(self, text: str, tokens: int, *, keep: str = "end") -> str:
        """The last (`keep="end"`) or first `tokens` tokens of `text`; the text itself if it is shorter."""
        ids = self.plain(text)
        if len(ids) <= tokens:
            return text
        return self._decoded(ids[len(ids) - tokens :] if keep == "end" else ids[:tokens])

    def beginning(self, text: str, tokens: int) -> str:
        """The first `tokens` tokens of `text`; the text itself if it is shorter."""
        return self.clip(text, tokens, keep="start")

    def count(self, text: str) -> int:
        """Length of `text` in tokens."""
        return len(self.plain(text))
