"""What of a conversation is new, where a client sends the whole of it every time."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b


def digest(role: str, text: str) -> bytes:
    """Of one message, in 16 bytes."""
    return blake2b(f"{role}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def known(sent: Sequence[bytes], read: Sequence[bytes]) -> int:
    """How many messages at the beginning of `sent` were read before: the longest run of them in `read`, in order.

    A client may have cut the beginning off, and a memory may have had several conversations. A run that is all of `sent` counts
    whole only at the end of `read`, where an answer is asked for again; elsewhere the last message is said once more.
    Knuth, Morris and Pratt's search: linear in both.
    """
    if not sent:
        return 0
    fall = [0] * len(sent)  # of each prefix: its longest end that is a beginning, too
    for i in range(1, len(sent)):
        k = fall[i - 1]
        while k and sent[i] != sent[k]:
            k = fall[k - 1]
        fall[i] = k + (sent[i] == sent[k])
    best = run = 0
    for at, one in enumerate(read):
        while run and (run == len(sent) or one != sent[run]):
            run = fall[run - 1]
        run += one == sent[run]
        best = max(best, run if run < len(sent) or at == len(read) - 1 else run - 1)
    return best
