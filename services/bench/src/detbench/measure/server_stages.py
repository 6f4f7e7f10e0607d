"""Where a server's time went during a load, by its own statistics, where its answers do not tell."""

from detbench.results.loads import Load

Statistics = dict[str, tuple[int, int]]


def with_stages(load: Load, before: Statistics | None, after: Statistics | None) -> Load:
    """`load` with the mean of each stage, and of the batches, between two readings of a server's statistics.

    They are of all requests between the readings, those of the warm-up among them. Where the answers had the times of
    their own stages, or the server has no statistics, `load` stays as it is.

    Args:
        before, after: see `OipClient.statistics`.
    """
    if load.stages_ms or before is None or after is None:
        return load
    grown = {name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in after}
    inferences, batches = grown.pop("batches")
    return load.model_copy(
        update={
            "stages_ms": {
                stage: nanoseconds / count / 1e6 for stage, (count, nanoseconds) in grown.items() if count > 0
            },
            "batch_size_mean": inferences / batches if batches > 0 else None,
        }
    )
