"""Everything that can go wrong with a request, each class with the HTTP status that it is answered with."""


class DetserverError(Exception):
    """Base class. The message is one line for the client: what is wrong, and what to do about it."""

    status = 500
    retry_after_s: int | None = None

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # what it quotes may have several


class EmptyBody(DetserverError):
    """Raised when a request that must carry an image carries nothing, or an empty file."""

    status = 400


class NotAnImage(DetserverError):
    """Raised when the bytes are no image of an accepted format, are cut off, or are damaged."""

    status = 400


class MalformedForm(DetserverError):
    """Raised when a body that calls itself a multipart form is not one."""

    status = 400


class ImageTooSmall(DetserverError):
    """Raised when a side of the image would have no pixel left at a model's input size (8000x1, for example)."""

    status = 400


class BodyTimeout(DetserverError):
    """Raised when a client takes too long to send its body."""

    status = 408


class ClientGone(DetserverError):
    """Raised when a client closes its connection before it has its answer, which nobody gets; the status is nginx's."""

    status = 499


class BadInferRequest(DetserverError):
    """Raised when a request of the Open Inference Protocol does not follow it, or is not what a model here takes."""

    status = 400


class UnknownImplementation(DetserverError):
    """Raised when no implementation has the name that was asked for."""

    status = 404


class UnknownModelSet(DetserverError):
    """Raised when no model set has the name that was asked for."""

    status = 404


class UnknownModelVersion(DetserverError):
    """Raised when a client of the Open Inference Protocol asks for another version than the one that a model has."""

    status = 404


class CannotRun(DetserverError):
    """Raised when an implementation cannot run a model set, or cannot run on this device."""

    status = 409


class NotLoaded(DetserverError):
    """Raised when an implementation was unloaded for a model set, and nobody has loaded it again since."""

    status = 409


class OnlyPreloaded(DetserverError):
    """Raised when a server that serves what it has preloaded, and nothing else, is to load or unload something."""

    status = 409


class WeightsRefused(DetserverError):
    """Raised when a weights file is not the model's: other keys, other shapes, a wrong checksum, not readable."""

    status = 409


class BodyTooLarge(DetserverError):
    """Raised when a body has more bytes than the limit, before more than the limit was read."""

    status = 413


class ImageTooLarge(DetserverError):
    """Raised when an image has more pixels than the limit, before any pixel was decoded."""

    status = 413


class UnsupportedMediaType(DetserverError):
    """Raised when the body is neither a multipart form nor an image, by its Content-Type, or is compressed."""

    status = 415


class MissingField(DetserverError):
    """Raised when a multipart form has no file in the field `file`."""

    status = 422


class QueueFull(DetserverError):
    """Raised when as many requests as the limits allow are being worked on, received or kept waiting already."""

    status = 429
    retry_after_s = 1


class DeadlineTooNear(DetserverError):
    """Raised at once when a request would miss its deadline, because of all that is in work, or by itself."""

    status = 429
    retry_after_s = 1


class DeadlineMissed(DetserverError):
    """Raised when a request that was taken in is not answered by its deadline."""

    status = 503
    retry_after_s = 1


class NotReady(DetserverError):
    """Raised while the preloaded implementations are loading, and when the server is about to end."""

    status = 503
    retry_after_s = 2


class OutOfMemory(DetserverError):
    """Raised when the device has no memory left for a load or a forward pass, or the machine none for an image."""

    status = 503
    retry_after_s = 5


class DeviceFailed(DetserverError):
    """Raised from the moment on at which the device answers nothing but errors, until the process has ended."""

    status = 503
    retry_after_s = 10


class InferenceFailed(DetserverError):
    """Raised when an implementation fails in load or predict, or answers a NaN or an infinity; the log has the rest."""


class InternalError(DetserverError):
    """Stands for everything that is raised and is none of these: a mistake of ours; the log has its traceback."""


class KernelsNotCounted(DetserverError):
    """Raised when the process that counts an implementation's kernels fails, or takes too long."""


class BadConfiguration(DetserverError):
    """Raised at the start, when a setting or the file of model sets cannot be used."""
