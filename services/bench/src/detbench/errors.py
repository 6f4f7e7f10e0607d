"""What can go wrong, each with the exit code of the command that it ends."""


class DetbenchError(Exception):
    """The command cannot go on. The message is one line: what is wrong, and what to do about it."""

    exit_code = 2


class DatasetError(DetbenchError):
    """A dataset is missing, cannot be downloaded, or is not what it should be."""


class ReferenceMismatch(DetbenchError):
    """There is no reference to compare with, or it belongs to other weights or other images."""


class ServerError(DetbenchError):
    """The inference server does not answer, refuses, or ended; `status` is that of its answer, where there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class LimitMissed(DetbenchError):
    """A limit that the user set is not held, or what it is set to was not measured."""

    exit_code = 3


class MalformedOutput(DetbenchError):
    """A response is malformed: lists of different length, a model missing, a NaN or an infinity."""
