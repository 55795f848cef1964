"""Which device and precision a model takes, how it is loaded beside others, and what is done where memory runs out."""

from __future__ import annotations

import gc
import threading

import torch
from torch import nn

from ..errors import SettingError
from ..validation import refuse_unknown

__all__ = [
    "LOADING",
    "default_device",
    "default_dtype",
    "free_memory",
    "is_lost",
    "is_out_of_memory",
    "lay_out_for_cpu",
    "named_dtype",
]

# Held while a model is loaded: the libraries change torch for all threads meanwhile, so that of two that are loaded at
# once one can be left with parameters that have no values.
LOADING = threading.RLock()
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def default_device() -> str:
    """ "cuda" or "mps" where there is one, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_dtype(device: str, halves: torch.dtype = torch.float16) -> torch.dtype:
    """A family's halves on CUDA, float32 elsewhere: CPUs compute halves slowly and MPS not always right."""
    return halves if device.startswith("cuda") else torch.float32


def named_dtype(name: str, device: str | None = None) -> torch.dtype | None:
    """The precision that a person asked for: "fp16", "bf16" or "fp32"; None, the device's own, for "".

    Raises SettingError for another name, and for fp32 on CUDA, where the UNet's weights would take twice the memory
    for nothing that can be seen. `load_backbone` itself takes any `torch.dtype`, so that precisions can be compared.
    """
    if not name:
        return None
    refuse_unknown("precision", name, _DTYPES)
    if name == "fp32" and (device or default_device()).startswith("cuda"):
        raise SettingError("fp32 is for machines without a GPU: choose fp16 (the default on CUDA) or bf16.")
    return _DTYPES[name]


def lay_out_for_cpu(model: nn.Module) -> None:
    """Puts the channels of a model's pictures last, as CPUs convolve them fastest: mini's autoencoder decodes in .80
    and encodes in .59 of the time, its UNet takes .97. On a GPU it is slower (1.06 at zeroscope's size)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host, whichever library says it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        reason in told for reason in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def is_lost(error: BaseException) -> bool:
    """Whether an error has left the GPU without an answer to this process: after an illegal access, a failed kernel or
    a fault of the hardware, CUDA refuses all that follows."""
    if not isinstance(error, RuntimeError) or "CUDA error" not in str(error) or is_out_of_memory(error):
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def free_memory() -> None:
    """Gives back what nothing uses any more, after an allocation has failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
