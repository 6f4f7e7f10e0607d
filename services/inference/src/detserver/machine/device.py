"""The device that the models run on: found, claimed by the threads that use it, and asked whether it still works."""

import torch

from detserver.errors import BadConfiguration


def usable_device(name: str) -> torch.device:
    """The device called `name`, claimed for the calling thread; `auto` is the first GPU, the CPU where there is none.

    Raises:
        BadConfiguration: it is none that the server runs on, is not there, or does not work.
    """
    setting = f"DETSERVER_DEVICE={name}"
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise BadConfiguration(f"{setting} is no device; say auto, cpu, cuda or cuda:1, for example") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise BadConfiguration(f"{setting}: the server runs on cuda and on cpu, not on {device.type}")
    device = torch.device("cuda", device.index or 0)
    count = torch.cuda.device_count()
    if count <= device.index and count > 0:
        last = f" to cuda:{count - 1}" if count > 1 else " alone"
        raise BadConfiguration(f"{setting}: there is no such GPU; torch sees cuda:0{last}")
    try:
        claim(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = _first_line(error).rstrip(".")
        raise BadConfiguration(f"{setting} cannot be used: {reason}. DETSERVER_DEVICE=cpu needs no GPU") from error
    return device


def claim(device: torch.device) -> None:
    """Make a GPU the calling thread's own; a thread that has none of its own uses the first one.

    Streams, graphs, pinned memory and the handles and workspaces of libraries go to the thread's GPU wherever none is
    named, in torch and in what uses it.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def use_ieee_float32() -> None:
    """No TF32: cuDNN would use it for convolutions by default, and what is called exact would not be.

    By the older of torch's two interfaces: torch.export and torch.compile read the flags through it, and refuse to when
    they were set through `fp32_precision`.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@torch.inference_mode()
def use_libraries(device: torch.device) -> None:
    """Multiply and convolve once, so that the libraries' handles are there, which are made for each thread."""
    ones = torch.ones(1, 1, 8, 8, device=device)
    torch.nn.functional.conv2d(ones @ ones, torch.ones(1, 1, 3, 3, device=device))
    synchronize(device)


def clear_workspaces() -> None:
    """Free what torch keeps for cuBLAS between calls: it counts as allocated, and is made anew when needed."""
    torch._C._cuda_clearCublasWorkspaces()


def synchronize(device: torch.device) -> None:
    """Wait for the work that was queued; errors of kernels are raised here at the latest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def why_broken(device: torch.device) -> str | None:
    """Why `device` does not work any more in this process, one line; None where it does.

    After some errors (an illegal memory access, a failed assertion in a kernel, an uncorrectable ECC error, a GPU that
    is gone) "any further CUDA work will return the same error. To continue using CUDA, the process must be terminated
    and relaunched" (CUDA Runtime API, cudaError). Others are told once, and a lack of memory is none of them.
    """
    reason = None
    for _ in range(2):
        try:
            synchronize(device)
            torch.zeros(1, device=device).add_(1).item()
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            reason = _first_line(error)
        else:
            return None
    return reason


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
