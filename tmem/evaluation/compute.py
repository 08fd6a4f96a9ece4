"""What a method computes, in floating-point operations: one figure, by one formula, from the tokens that were counted.

    flops = 2·body·read + 2·(body + head)·generated + learn·learned + 2·embedder·embedded

    read        prompts pass the decoder's layers, a text that several questions share for the first of them; the head runs at
                their last token alone and is left out
    generated   a token passes layers and head
    learned     a token of a pair in an epoch: the adapted layers forward and backward through their activations, 2·top each
                (the weights are frozen and get no gradient), and what the adapters add to both, see `Sizes.of`; once per
                update, not per epoch, everything forward: the trunk before the first epoch, the adapted layers after the
                last to see the loss. learn = 4·top + adapters + 2·body/epochs (an update that reaches its target loss in
                fewer epochs takes the last term oftener)
    embedded    a token passes the embedding model of dense retrieval

Two operations a weight and token, after Kaplan et al. (arXiv 2001.08361, section 2.1). Left out: products of attention, which
grow with the prompt's length; Δ itself while reading and generating (about 1 % of the body at rank 16 in 12 of 30 layers);
the head at the labels of pairs; BM25.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ..models.families import passed


@dataclass(frozen=True)
class Sizes:
    """Weights by what passes them, token embeddings left out: they are looked up.

    body: all decoder layers. top: those from the lowest adapted one up. head: hidden · vocabulary, also where it is tied.
    adapters: operations that they add to a learned token. epochs: of an update. embedder: of dense retrieval, 0 without.
    """

    body: int
    top: int
    head: int
    adapters: int
    epochs: int
    embedder: int = 0

    @classmethod
    def of(cls, agent, embedder: int = 0) -> Sizes:
        """Of a tmem.agent.loop.Agent.

        A layer [n, k] with rank r adds 2r(k + n) forward (shrink by A, expand by B), as much backward (dZ, dX), 2rn for dB
        and 2rk for dA where A is trained. Of experts a token passes those that it chooses.
        """
        layers = [passed(layer, agent.model.config) for layer in agent.model.model.layers]
        bank, adapters = agent.bank, 0
        for site in bank.sites:
            k, n = site.inputs, site.outputs
            passed_by = 1 if site.parameter is None else agent.model.config.num_experts_per_tok
            adapters += passed_by * bank.max_rank * (4 * (k + n) + 2 * n + 2 * k * bank.train_a)
        head = agent.model.lm_head.weight.numel()
        return cls(sum(layers), sum(layers[bank.first_layer :]), head, adapters, agent.config.learn.epochs, embedder)

    def flops(self, tokens: Mapping[str, int]) -> float:
        """Of a method that counted `tokens`: read, generated, learned and, with dense retrieval, embedded."""
        learn = 4 * self.top + self.adapters + 2 * self.body / self.epochs
        return float(
            2 * self.body * tokens["read"]
            + 2 * (self.body + self.head) * tokens["generated"]
            + learn * tokens["learned"]
            + 2 * self.embedder * tokens.get("embedded", 0)
        )

    def asdict(self) -> dict[str, int]:
        """For results.json."""
        return dataclasses.asdict(self)
