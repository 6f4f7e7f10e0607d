"""From the bytes of a file to what the networks take."""

from detserver.preprocess.letterbox import InputConfig, NetworkInput, Picture, PreparedImage, letterbox, prepare
from detserver.preprocess.upload import prepare_for, uploaded_bytes

__all__ = [
    "InputConfig",
    "NetworkInput",
    "Picture",
    "PreparedImage",
    "letterbox",
    "prepare",
    "prepare_for",
    "uploaded_bytes",
]
