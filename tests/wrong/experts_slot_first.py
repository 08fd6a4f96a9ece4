"""Wrong: expert e of slot s is taken as row e · slots + s of the bank, which is another expert's."""

from tmem.adapters import experts


def put(monkeypatch):
    right = experts._segments

    def wrong(bank, rows, count, device):
        seg, slots = right(bank, rows, count, device), bank.rank.shape[0]
        moved = seg.slot % count * slots + seg.slot // count
        return seg._replace(slot=moved.where(seg.slot >= 0, seg.slot), rank=seg.rank.clamp(min=1))

    monkeypatch.setattr(experts, "_segments", wrong)
