"""Takes over what was read, or rows of before, and leaves what the row held before: 0 · NaN of masked columns is NaN."""


def put(self, places, part):
    """As of tmem.agent.steps._Columns, without a word on which columns that leaves to be zeroed."""
    at = self.rows.new_tensor(places)
    cache, rows = part
    for layer in range(len(self.memory)):
        for mine, read in zip(self.memory[layer], cache.layer(layer)):
            mine[at, :, : cache.length] = read[rows, :, : cache.length].to(mine.dtype)


def move(self, other, rows):
    """The same of `move`."""
    columns = min(self.memory.shape[4], other.memory.shape[4])
    self.memory[:, :, : len(rows), :, :columns] = other.memory[:, :, list(rows), :, :columns]
