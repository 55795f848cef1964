"""The batch's groups on Ray: an actor a GPU, or a few cores, each with the backbone loaded once.

Without `RAY_ADDRESS` that is this machine's own processors or GPUs, with it a cluster's: each of its machines then has
this code and FreeMask's requirements, and sees the manifest's clips and the batch's folder under the same paths.
A worker that dies is begun anew with its group, and goes on behind the edits that are done.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import SettingError, first_line
from ..families.specs import ROOT
from .manifest import Edit
from .work import make_group

__all__ = ["run_groups"]


def run_groups(
    out: Path, groups: Sequence[Sequence[Edit]], *, workers: int | None = None, extras: bool = False
) -> Generator[str, None, None]:
    """Makes the groups, several at once; yields each edit's folder name when its group is done. `workers` None means
    one a GPU, or a core where there is none. Ray that the caller has started is used, and goes on afterwards.

    Raises SettingError where Ray is not installed, or more workers are asked than there are GPUs or cores.
    """
    if not groups:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised
    os.environ.setdefault("RAY_worker_niceness", "0")  # else workers starve beside anything else
    try:
        import ray
    except ImportError:
        raise SettingError(
            "A batch on several workers runs on Ray: pip install -r requirements-batch.txt, or take --shard 1/1."
        ) from None
    if own := not ray.is_initialized():  # whoever runs batches from Ray keeps it
        _start(ray)
    try:
        size, each = _shares(ray.nodes(), len(groups), workers)
        anew = {"max_restarts": -1, "max_task_retries": -1}  # an edit that ends its workers fails after a few
        begun = ray.remote(Worker).options(num_cpus=each.get("CPU", 0), num_gpus=each.get("GPU", 0), **anew)
        left = ((out.resolve(), _resolved(group), extras) for group in groups)
        busy = {worker.make.remote(*next(left)): worker for worker in [begun.remote() for _ in range(size)]}
        while busy:
            (done,), _ = ray.wait(list(busy))
            worker = busy.pop(done)
            if given := next(left, None):
                busy[worker.make.remote(*given)] = worker
            del worker  # where no group is left it ends, and what it had is free for one whose machine is gone
            yield from ray.get(done)
    finally:
        if own:
            ray.shutdown()


def _start(ray: Any) -> None:
    """Joins the cluster, or starts this machine's own; once more where it is too busy to answer in time."""
    cluster = os.environ.get("RAY_ADDRESS")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    where: dict[str, Any] = {"address": cluster, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    if not cluster:
        where = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        os.environ["PYTHONPATH"] = path  # of the workers, which then need no environment made for them
    main = threading.current_thread() is threading.main_thread()
    ending = signal.getsignal(signal.SIGTERM)  # which Ray takes for itself: it would end a batch without its results
    for last in (False, True):
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises bare ones
            ray.shutdown()
            if last:
                reason = first_line(error)
                raise SettingError(
                    f"Ray cannot be started ({reason}): look at RAY_ADDRESS, or take --shard."
                ) from error
        finally:
            if main and ending is not None:
                signal.signal(signal.SIGTERM, ending)


class Worker:
    """Makes one group after the other; its process keeps the backbone loaded."""

    def make(self, out: Path, group: list[Edit], extras: bool) -> list[str]:
        return list(make_group(out, group, extras=extras))


def _shares(nodes: Sequence[dict[str, Any]], groups: int, asked: int | None) -> tuple[int, dict[str, float]]:
    """How many workers there are, no more than groups, and what each has of its machine."""
    found = [node["Resources"] for node in nodes if node["Alive"]]
    kind = "GPU" if any(one.get("GPU") for one in found) else "CPU"
    each = [int(one.get(kind, 0)) for one in found if one.get(kind)]
    if asked is not None and asked > sum(each):
        raise SettingError(f"{asked} workers are asked, and there are {sum(each)} {kind}s: ask for no more than those.")
    size = max(1, min(asked or sum(each), groups, sum(each)))
    return size, {kind: 1 if kind == "GPU" else max(1, min(sum(each) // size, min(each)))}


def _resolved(group: Sequence[Edit]) -> list[Edit]:
    """The same edits with paths that hold wherever a worker begins."""
    edits = []
    for edit in group:
        assert edit.settings
        masks = edit.settings.masks
        settings = replace(edit.settings, masks=masks.resolve() if masks else None)
        edits.append(replace(edit, clip=edit.clip.resolve(), settings=settings))
    return edits
