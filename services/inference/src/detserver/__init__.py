"""Serves several EfficientDet detectors at once, one HTTP endpoint for each way of running them."""

__version__ = "0.1.0"
