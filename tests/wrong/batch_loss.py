"""Wrong: the loss of an online update is normalised by the labels of the whole batch, so neighbours change an episode."""

from tmem.agent import learn as right


def learn(model, bank, jobs, chat, config):
    def shared(blocks, **options):
        labels = sum(sum(w > 0 for w in b.weights) for b in blocks)
        for block in blocks:
            block.weights = [1.0 / labels if w else 0.0 for w in block.weights]
        return original(blocks=blocks, **options)

    original, right._pass = right._pass, lambda m, b, blocks, **o: shared(blocks, model=m, bank=b, **o)
    try:
        return right.learn(model, bank, jobs, chat, config)
    finally:
        right._pass = original
