"""Names of the series that a registry can have."""

from prometheus_client import CollectorRegistry


def families(registry: CollectorRegistry) -> set[str]:
    """With the suffixes that Prometheus sees."""
    names = set()
    for family in registry.collect():
        if family.type == "counter":
            names.add(f"{family.name}_total")
        elif family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            names.add(family.name)
    return names
