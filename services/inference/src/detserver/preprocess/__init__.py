"""From the bytes of a file to what the networks take."""

from detserver.preprocess.letterbox import InputConfig, NetworkInput, PreparedImage, letterbox, prepare

__all__ = ["InputConfig", "NetworkInput", "PreparedImage", "letterbox", "prepare"]
