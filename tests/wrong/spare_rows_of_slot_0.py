"""Wrong: the rows that fill a block up to its extent belong to slot 0."""

from tmem.agent import captured_update


class Step(captured_update.Step):
    def _segments(self, slots, lengths, counts):
        spare = self.extent.rows - len(slots)
        super()._segments([*slots, *[0] * spare], [*lengths, *[self.extent.length] * spare], [*counts, *[0] * spare])
