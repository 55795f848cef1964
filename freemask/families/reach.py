"""What of the backbones can be used on this machine, told before anything is loaded.

A backbone of more than a GiB of weights wants a GPU; without one, a patient person may still run it on the command
line, but no page offers it. And its weights must be at hand or to be had: they lie in a folder, were downloaded
before, or the hub can be reached, which means that HF_HUB_OFFLINE is not set and that the hub answers within a few
seconds. It is asked once in a process, and only where something is missing; with a network that comes later, a
download serves at once, the list of a page from its next start. torch is not imported for any of this.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import BackboneError
from .specs import backbone_folder, known_backbone
from .weights import NETWORKS, downloaded

__all__ = ["Obstacle", "has_gpu", "missing_gpu", "missing_weights", "obstacle", "refusal", "zero_gpu"]

LARGE = 2**30  # bytes of weights that a CPU takes minutes a step for
PATIENCE = 5.0  # seconds that the hub has to answer
DEVICES = Path("/dev")
NODES = ("nvidia[0-9]*", "dxg")  # of NVIDIA's driver, and of the one that WSL passes through
ROCM = "kfd"


class Obstacle(NamedTuple):
    """Why a backbone cannot be used here, and what helps: halves of a sentence."""

    why: str
    cure: str


def zero_gpu() -> bool:
    """Whether this process runs on ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def has_gpu() -> bool:
    """Whether edits run on a GPU here. torch says so where it is imported already; before, the driver's files and the
    build of torch do, which may hold for a GPU that torch then cannot use."""
    if zero_gpu():
        return True
    torch = sys.modules.get("torch")
    with suppress(AttributeError):  # another thread imports it just now
        if torch is not None:
            return bool(torch.cuda.is_available() or torch.backends.mps.is_available())
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    build = importlib.metadata.version("torch").partition("+")[2]
    if build == "cpu" or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    nodes = (ROCM,) if build.startswith("rocm") else NODES
    return any(any(DEVICES.glob(node)) for node in nodes)


def missing_gpu(name: str) -> Obstacle | None:
    """That a backbone, by short name, hub id or folder, wants a GPU and there is none. Nothing is said of a model of
    which nothing is known yet. Raises SettingError for an unknown name."""
    if _weight_bytes(name) < LARGE or has_gpu():
        return None
    return Obstacle("there is no GPU", "run FreeMask on a machine that has one")


def missing_weights(name: str) -> Obstacle | None:
    """That the weights of a backbone are not here and not to be had. Raises SettingError for an unknown name."""
    if backbone_folder(name) or downloaded(name):
        return None
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        why = "HF_HUB_OFFLINE is set"
    elif not _hub_answers():
        why = "the hub does not answer"
    else:
        return None
    return Obstacle(
        f"its weights are not downloaded and {why}",
        f"run `python -m freemask download {name}` where there is a network",
    )


def obstacle(name: str) -> Obstacle | None:
    """Why a page here does not offer a backbone, None where it does. Raises SettingError for an unknown name."""
    return missing_gpu(name) or missing_weights(name)


def refusal(name: str, met: Obstacle) -> BackboneError:
    """An obstacle as the error that tells of it."""
    return BackboneError(f"{name} cannot be used here, since {met.why}: {met.cure}, or choose mini.")


def _weight_bytes(name: str) -> int:
    """Of a backbone in halves where it is known, else of its UNet's files as they are, 0 where they are not here."""
    if spec := known_backbone(name):
        return spec.weight_bytes or 0
    folder = backbone_folder(name) or downloaded(name)
    return sum(path.stat().st_size for part in NETWORKS for path in (folder / part).glob("*.*")) if folder else 0


@lru_cache(maxsize=1)
def _hub_answers() -> bool:
    """Whether the hub can be reached; what it says does not matter. The look-up of its name knows no time limit, so a
    thread of its own waits for it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):  # the client raises many kinds
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(PATIENCE)
