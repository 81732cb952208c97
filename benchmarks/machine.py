"""What a benchmark ran on."""

from pathlib import Path

import jax

from jaxmnist.training import parallel


def hardware() -> str:
    """Processor or GPU, by the name it gives itself; of AMD's EPYCs the generation, too."""
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    text = Path("/proc/cpuinfo").read_text()
    first, _, _ = text.partition("\n\n")
    rows = (row.partition(":") for row in first.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in rows}
    name = facts.get("model name", "CPU")
    # Virtual machines leave out what follows in the name, and the generations differ in speed.
    if zen := _zen(facts) if name.startswith("AMD EPYC") else None:
        name += f" (Zen {zen})"
    return f"{name}, {parallel.cores()} cores"


def on_cpu(device: str) -> bool:
    """Whether this is ``hardware()`` of a processor."""
    return device.endswith(" cores")


def _zen(facts: dict[str, str]) -> int | None:
    """The generation, by the family and model numbers of AMD's servers; None for others."""
    family, model = (int(facts.get(name, -1)) for name in ("cpu family", "model"))
    match family:
        case 23:
            return 1 if model < 0x30 else 2
        case 25:
            return 3 if model < 0x10 else 4
        case 26:
            return 5
    return None
