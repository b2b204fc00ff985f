"""Peak memory by torch's own record."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def recorded_peak_bytes(action: Callable[[], object]) -> int:
    """Peak of torch's own record of every allocation and release in the CPU allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        action()
    events = [event for event in recording.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
