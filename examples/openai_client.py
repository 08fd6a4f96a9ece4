"""The official OpenAI client with `tmem serve`, plain, streamed and async: python examples/openai_client.py [URL [KEY]]

Start the server first: tmem serve --store memories. Needs pip install openai.
"""

import asyncio
import sys

from openai import AsyncOpenAI, BadRequestError, OpenAI

QUESTION = [{"role": "user", "content": "What is the name of my dog?"}]


def learned(client: OpenAI) -> None:
    """Tell a memory a fact and have it learned at once; a chat does so by itself once there is a page of text."""
    pairs = [["What is the name of my dog?", "Biscuit"]]
    client.post("/memories/ben/learn", cast_to=object, body={"pairs": pairs, "source": "example"})


def plain(client: OpenAI, model: str) -> str:
    """An answer as one object. The memory is named by `user`; extra_body={"memory": "ben"} does the same."""
    found = client.chat.completions.create(model=model, user="ben", messages=QUESTION, max_tokens=16)
    return found.choices[0].message.content


def streamed(client: OpenAI, model: str) -> str:
    """An answer as it is generated."""
    parts = []
    for event in client.chat.completions.create(model=model, user="ben", messages=QUESTION, max_tokens=16, stream=True):
        parts.append(event.choices[0].delta.content or "")
    return "".join(parts)


async def at_once(url: str, key: str, model: str) -> list[str]:
    """One question by three users at the same time; the last one has no memory."""
    async with AsyncOpenAI(base_url=url, api_key=key) as client:
        headers = [{"X-Memory": "ben"}, {"X-Memory": "carla"}, {}]
        asked = [
            client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, extra_headers=named)
            for named in headers
        ]
        return [found.choices[0].message.content for found in await asyncio.gather(*asked)]


def raw(client: OpenAI, model: str) -> str:
    """Text that the model goes on with, under the memory's weights."""
    return client.completions.create(model=model, user="ben", prompt="My dog is called", max_tokens=8).choices[0].text


def refused(client: OpenAI, model: str) -> str:
    """What is not done is refused in a sentence that names the field."""
    try:
        client.chat.completions.create(model=model, user="ben", messages=QUESTION, n=2)
    except BadRequestError as error:
        return f"{error.param}: {error.body['message']}"
    return "nothing was refused"


def main(url: str = "http://127.0.0.1:8420/v1", key: str = "unused") -> None:
    client = OpenAI(base_url=url, api_key=key)
    model = client.models.list().data[0].id
    client.post("/memories", cast_to=object, body={"name": "ben"})
    learned(client)
    print(f"plain     {plain(client, model)}")
    print(f"streamed  {streamed(client, model)}")
    print(f"at once   {asyncio.run(at_once(url, key, model))}")
    print(f"raw       {raw(client, model)!r}")
    print(f"refused   {refused(client, model)}")
    client.delete("/memories/ben", cast_to=object)
    client.delete("/memories/carla", cast_to=object)


if __name__ == "__main__":
    main(*sys.argv[1:])
