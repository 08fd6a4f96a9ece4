"""LangChain with `tmem serve`: a chat model whose memory is in its weights: python examples/langchain_chat.py [URL [KEY]]

Start the server first: tmem serve --store memories. Needs pip install langchain-openai.
"""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

FACTS = [["What is the name of my dog?", "Biscuit"], ["Where do I live?", "Ghent"]]


def chat_of(user: str, url: str, key: str) -> ChatOpenAI:
    """A chat model that remembers what this user tells it. The header names the memory, whatever LangChain sends besides."""
    model = ChatOpenAI(model="any", base_url=url, api_key=key).root_client.models.list().data[0].id
    return ChatOpenAI(model=model, base_url=url, api_key=key, default_headers={"X-Memory": user}, temperature=0, max_tokens=16)


def main(url: str = "http://127.0.0.1:8420/v1", key: str = "unused") -> None:
    chat = chat_of("dora", url, key)
    memories = chat.root_client
    memories.post("/memories", cast_to=object, body={"name": "dora"})
    memories.post("/memories/dora/learn", cast_to=object, body={"pairs": FACTS, "source": "example"})
    chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | chat | StrOutputParser()
    for question, _ in FACTS:
        print(f"asked     {question} {chain.invoke({'question': question})}")
    print(f"streamed  {''.join(chain.stream({'question': FACTS[0][0]}))}")
    print(f"at once   {chain.batch([{'question': question} for question, _ in FACTS])}")
    memories.delete("/memories/dora", cast_to=object)


if __name__ == "__main__":
    main(*sys.argv[1:])
