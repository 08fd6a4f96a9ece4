"""What torch allocates while something is computed."""

from torch.profiler import ProfilerActivity, profile


def peak(compute):
    """Bytes on the CPU above those at the beginning, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        compute()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
