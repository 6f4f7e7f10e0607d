"""Serves several EfficientDet detectors at once, one HTTP endpoint for each way of running them."""

import os
import warnings

# Set before torch loads OpenMP, whose threads otherwise wait in a busy loop: with a core taken by anything else (the
# event loop, a decoder, a load generator on the machine) a forward pass then takes up to twenty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# torch's profiler would log each of its starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

# effdet scripts one function when it is imported; newer torch versions remark on it at every start.
warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)

__version__ = "0.1.0"
