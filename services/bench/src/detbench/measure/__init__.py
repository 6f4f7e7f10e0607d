"""Measurements: the sweep, the ablation, the servers that they start, and what they make of it."""
