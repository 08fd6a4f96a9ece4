"""Turn questions, pairs and passages into tokens with the model's own chat template, without its system turn.

The system turn says nothing about the task and would double the length of a question/answer pair.
"""

from __future__ import annotations

_MARK = "\u241e"  # a character no template contains


class Chat:
    """Renders one user turn and the opening of the assistant's; `end` is the token id that closes an answer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                [{"role": "system", "content": ""}, {"role": "user", "content": _MARK}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,  # templates that do not know it ignore it
            )
            before, after = text.split(_MARK)
            closing = tokenizer.eos_token or ""
            if closing and closing in before:  # drop the system turn: everything up to its closing token and newline
                whole, before = before, before.rsplit(closing, 1)[1].lstrip("\n")
                opening = tokenizer.bos_token or ""
                if opening and whole.startswith(opening) and not before.startswith(opening):
                    before = opening + before  # a model that was taught with it answers badly without it
        else:
            before, after = "User: ", "\nAssistant: "
        self._before, self._after = self._ids(before), self._ids(after)
        self.end: int = tokenizer.eos_token_id

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def prompt(self, text: str) -> list[int]:
        """Token ids of a user turn with `text`, ready for the assistant's answer."""
        return self._before + self.plain(text) + self._after

    def plain(self, text: str) -> list[int]:
        """Token ids of ordinary text: a control token spelled out in it stays ordinary characters."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def answer(self, text: str) -> list[int]:
        """Token ids of an assistant's answer, with its closing token."""
        return self.plain(text) + [self.end]

    def text(self, ids: list[int]) -> str:
        """Generated ids back to text, without control tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def clip(self, text: str, tokens: int, *, keep: str = "end") -> str:
        """The last (`keep="end"`) or first `tokens` tokens of `text`; the text itself if it is shorter."""
        ids = self.plain(text)
        if len(ids) <= tokens:
            return text
        return self.tokenizer.decode(ids[-tokens:] if keep == "end" else ids[:tokens])

    def count(self, text: str) -> int:
        """Length of `text` in tokens."""
        return len(self.plain(text))
