"""A chat that learns over three sessions, with a restart of the server between them: python examples/three_sessions.py [FOLDER]

The server is `tmem serve` with its store in FOLDER, by default a temporary one. Every session is a new conversation: what was
told in an earlier one is answered out of the weights, or not at all. Needs pip install 'tmem[serve]' openai.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
from openai import OpenAI

# What is told in a session, and before that what is asked of earlier ones, each with a word of the answer.
SESSIONS = [
    ([], ["My sister is called Petra.", "I live in Ghent."]),
    ([("What is the name of my sister?", "Petra")], ["My cat is called Minka."]),
    ([("Where do I live?", "Ghent"), ("What is the name of my cat?", "Minka")], []),
]


@contextmanager
def served(folder: str) -> Iterator[str]:
    """The address of `tmem serve` with this store, while the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "--store", folder, "--port", str(port), "--slots", "2"]
    process = subprocess.Popen([sys.executable, "-m", "tmem", *words])
    try:
        while process.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        else:
            raise SystemExit("the server has ended; what it said is above.")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def session(client: OpenAI, asked: list[tuple[str, str]], told: list[str]) -> int:
    """One conversation; how many questions were answered right."""
    model, messages, right = client.models.list().data[0].id, [], 0
    for text, answer in [*asked, *((text, "") for text in told)]:
        messages.append({"role": "user", "content": text})
        found = client.chat.completions.create(model=model, user="ada", messages=messages, max_tokens=24)
        said = found.choices[0].message.content
        messages.append({"role": "assistant", "content": said})
        right += bool(answer) and answer in said
        print(f"  {text}\n    {said}" if answer else f"  {text}")
    client.post("/memories/ada/write", cast_to=object, body={})  # she leaves: what waits is written down and learned
    return right


def main(serve: Callable[[], AbstractContextManager[str]]) -> int:
    """All sessions, each with a server of its own; how many answers were wrong."""
    wrong = 0
    for number, (asked, told) in enumerate(SESSIONS, 1):
        print(f"session {number}")
        with serve() as url:
            wrong += len(asked) - session(OpenAI(base_url=url, api_key="unused"), asked, told)
    return wrong


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", nargs="?", help="where the store is kept; by default a temporary one")
    asked_for = words.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked_for or f"{temporary}/memories"
        sys.exit(main(lambda: served(folder)))
