"""Device that a command runs on, checked before anything is loaded."""

import torch


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """
    The named device, or by default a GPU where there is one.

    Raises:
        ValueError: an unknown name, or a device that this machine or this build of torch does not have.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # A build of torch without CUDA answers with an AssertionError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = str(error).partition("\n")[0]
        raise ValueError(
            f"device={str(name)!r} cannot be used here ({cause}): choose cpu, or leave it out."
        ) from error
    return device
