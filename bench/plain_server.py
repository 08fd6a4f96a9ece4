"""The straightforward server: transformers and PEFT, an adapter for every memory, one request at a time.

It learns by the same recipe as tmem.agent.learn: the same A, pairs, renderings, rehearsal, minibatches, AdamW and rule when to
stop. A write's pairs are one padded batch. Layers below the first adapter keep no graph. Answers have a key/value cache, logits
at the last token alone, and a stream. Adapters and moments stay in memory, and none is set that is set already. What a user
said in chats is shown with its prompts, as tmem does until it is learned. Nothing is written to the disk.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..agent.agent import Agent, Reply, first_line, least
from ..agent.decode import Generation
from ..agent.recognise import gain
from ..agent.renderings import rendered
from ..agent.teach import Lesson, chosen, newest
from ..episode import Pair
from .padded import batch_of


@dataclass
class Plain:
    """A memory: its adapter's name, the B of every layer, their optimizer, what it was taught and what was said to it."""

    adapter: str
    b: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    lesson: Lesson = field(default_factory=Lesson)
    waiting: list[str] = field(default_factory=list)


class PlainServer:
    """Memories by their names.

    agent  gives words, settings and A; its bank is taken from the model
    steps  of all optimizers, so far
    """

    def __init__(self, agent: Agent):
        self.agent, self.chat, self.steps = agent, agent.chat, 0
        self.names = [site.name for site in agent.bank.sites]
        self.factors = [a.clone() for a in agent.bank.factors]
        self.rank = agent.bank.max_rank
        agent.bank.detach()
        self.memories: dict[str, Plain] = {}
        self.peft: Any = None
        self.active = ""
        self.device = next(agent.model.parameters()).device

    def make(self, name: str) -> None:
        """A memory with Δ = 0."""
        from peft import LoraConfig, get_peft_model

        adapter = f"m{len(self.memories)}"
        config = LoraConfig(
            task_type="CAUSAL_LM", r=self.rank, lora_alpha=self.rank, lora_dropout=0.0, target_modules=self.names
        )
        if self.peft is None:
            self.peft = get_peft_model(self.agent.model, config, adapter_name=adapter).eval()
            self.modules = dict(self.peft.get_base_model().named_modules())
        else:
            self.peft.add_adapter(adapter, config)
        with torch.no_grad():
            for site, a in zip(self.names, self.factors):
                self.modules[site].lora_A[adapter].weight.copy_(a)
        b = [self.modules[site].lora_B[adapter].weight for site in self.names]
        learn = self.agent.config.learn
        optimizer = torch.optim.AdamW(b, lr=learn.lr, weight_decay=learn.weight_decay, fused=True)
        self.memories[name] = Plain(adapter, b, optimizer)
        self.active = ""

    def _select(self, memory: Plain) -> None:
        if self.active != memory.adapter:
            self.peft.set_adapter(memory.adapter)
            for site in self.names:
                self.modules[site].lora_A[memory.adapter].weight.requires_grad_(False)
            self.active = memory.adapter

    def learn(self, name: str, given: Sequence[Pair]) -> tuple[float, float]:
        """Teach pairs; the mean loss of an answer's token in the first epoch, and after the last. Undone where it rose."""
        memory, config = self.memories[name], self.agent.config.learn
        self._select(memory)
        new = newest(given)
        pairs, before = chosen(memory.lesson.pairs, new, config), [b.detach().clone() for b in memory.b]
        first = 0.0
        for epoch in range(config.epochs):
            losses = [self._step(memory, batch) for batch in self._batches(pairs, epoch)]
            loss = sum(losses) / len(losses)
            first = first if epoch else loss
            if epoch + 1 >= config.turns and loss < config.target:
                break
        with torch.no_grad():
            after = [float(self.peft(**batch, use_cache=False).loss) for batch in self._batches(pairs, 0)]
        last = sum(after) / len(after)
        if last <= first:
            memory.lesson.remember(new)
        else:
            with torch.no_grad():
                torch._foreach_copy_(memory.b, before)
        return first, last

    def _step(self, memory: Plain, batch: dict[str, Tensor]) -> float:
        loss = self.peft(**batch, use_cache=False).loss
        loss.backward()
        memory.optimizer.step()
        memory.optimizer.zero_grad()
        self.steps += 1
        return float(loss.detach())

    def _batches(self, pairs: Sequence[Pair], epoch: int) -> list[dict[str, Tensor]]:
        config = self.agent.config.learn
        taught = rendered(pairs, epoch, config.renderings, config.unknown, config.reverse)
        return [batch_of(self.chat, taught[i : i + config.batch], self.device) for i in range(0, len(taught), config.batch)]

    def ask(self, name: str, question: str) -> str:
        """A short answer, as `Memory.ask` gives it."""
        memory, most = self.memories[name], self.agent.config.answer.max_new
        reply = self._say(memory, [*memory.waiting, self.agent.asked(question)], most, lambda _: None)
        return first_line(reply.text) if memory.waiting else self._settled(memory, question, reply)

    def _settled(self, memory: Plain, question: str, reply: Reply) -> str:
        """As Agent.settled, under the memory's adapter, which is selected."""
        config, unknown = self.agent.config.answer, self.agent.config.learn.unknown
        said = unknown if least(reply) < config.sure else first_line(reply.text)
        if said == unknown or not said.strip() or config.gain <= 0.0:
            return said
        under = self._back(said, question)
        with self.peft.disable_adapter():
            alone = self._back(said, question)
        self.active = ""  # when PEFT enables an adapter again, all of it takes gradients
        self._select(memory)
        return said if gain(self.chat.words(self.chat.said(question)), under, alone) >= config.gain else unknown

    @torch.no_grad()
    def _back(self, answer: str, question: str) -> list[float]:
        """Log-probabilities of a question's tokens, asked back from an answer."""
        start, then = self.chat.prompt(self.agent.asked_back(answer)), self.chat.answer(question)
        logits = self.peft(input_ids=torch.tensor([start + then], device=self.device)).logits[0, len(start) - 1 : -1]
        return logits.float().log_softmax(-1).gather(1, torch.tensor(then, device=self.device)[:, None])[:, 0].tolist()

    def talk(self, name: str, text: str, most: int, tell: Callable[[str], None]) -> Reply:
        """An answer to a message, which is shown with later prompts; `tell` is told of the text as it comes."""
        memory = self.memories[name]
        words = self.agent.asked(text) if text.rstrip().endswith("?") else text
        reply = self._say(memory, [*memory.waiting, words], most, tell)
        memory.waiting.append(f"user: {text}")
        return reply

    @torch.no_grad()
    def _say(self, memory: Plain, parts: Sequence[str], most: int, tell: Callable[[str], None]) -> Reply:
        from transformers import DynamicCache

        from ..serve.said import Said

        self._select(memory)
        prompt = self.chat.prompt("\n\n".join(parts))
        said, logprobs, cache = Said(self.chat, most, (), tell), [], DynamicCache()
        ids = torch.tensor([prompt], device=self.device)
        ended = False
        while not ended:
            logits = self.peft(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
            ids = logits.argmax(-1, keepdim=True)
            logprobs.append(float(logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)))
            ended = said.add(int(ids))
        return Reply(prompt, Generation(said.ids, logprobs, said.reason == "stop"), said.text)


def plain_application(server: PlainServer):
    """The server behind the routes of tmem.serve that the benchmark uses. One thread does all the work, in the order in which
    requests come."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    worker = ThreadPoolExecutor(1, "plain server")

    async def worked(call: Callable[..., Any], *arguments) -> Any:
        return await asyncio.get_running_loop().run_in_executor(worker, call, *arguments)

    async def made(request: Request):
        await worked(server.make, (await request.json())["name"])
        return JSONResponse({}, 201)

    async def learn(request: Request):
        pairs = [Pair(*pair) for pair in (await request.json())["pairs"]]
        before, after = await worked(server.learn, request.path_params["name"], pairs)
        return JSONResponse({"loss_before": before, "loss_after": after})

    async def ask(request: Request):
        question = (await request.json())["question"]
        return JSONResponse({"answer": await worked(server.ask, request.path_params["name"], question)})

    async def chat(request: Request):
        body = await request.json()
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue()

        def talk() -> None:
            def tell(piece: Any) -> None:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

            try:
                tell(server.talk(body["memory"], body["messages"][-1]["content"], body["max_tokens"], tell))
            except Exception as error:
                tell(error)

        worker.submit(talk)
        return StreamingResponse(_events(pieces), media_type="text/event-stream")

    return Starlette(routes=[
        Route("/v1/memories", made, methods=["POST"]), Route("/v1/memories/{name}/learn", learn, methods=["POST"]),
        Route("/v1/memories/{name}/ask", ask, methods=["POST"]), Route("/v1/chat/completions", chat, methods=["POST"]),
    ])  # fmt: skip


async def _events(pieces: asyncio.Queue) -> AsyncIterator[str]:
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion.chunk"}
    while isinstance(piece := await pieces.get(), str):
        choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
        yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
    if isinstance(piece, Exception):
        yield f"data: {json.dumps({'error': {'message': str(piece)}})}\n\n"
    else:
        usage = {"prompt_tokens": piece.read, "completion_tokens": piece.generated}
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"
