"""Facts about GPUs that no machine of the tests has."""

from core.memory.device_facts import DeviceFacts


def a_card(
    name: str = "RTX 4090", *, total: float = 24, free: float = 23.4, capability: tuple[int, int] = (8, 9)
) -> DeviceFacts:
    """A card.

    Args:
        total: GiB; likewise `free`.
    """
    sizes = (int(total * 2**30), int(free * 2**30))
    return DeviceFacts(name, *sizes, capability, computes_bf16=capability >= (8, 0), driver="550.54")
