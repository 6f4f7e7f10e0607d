"""Serves several EfficientDet detectors at once, one HTTP endpoint for each way of running them."""

import warnings

# effdet scripts one function when it is imported; newer torch versions remark on it at every start.
warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)

__version__ = "0.1.0"
