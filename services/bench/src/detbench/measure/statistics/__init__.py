"""Statistics of a measurement, as pure functions of its figures: percentiles, ratios, drift."""
