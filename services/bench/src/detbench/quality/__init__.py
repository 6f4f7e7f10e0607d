"""Output error: how far the answers of an implementation are from the stored ones of `baseline`."""
