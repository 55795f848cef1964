"""Which files of a diffusers pipeline are its weights, and how they come from the hub.

Weights are safetensors where there are any: such a file holds numbers alone. A `.bin` is a pickle, whose loading can
run code; it is taken only where a part has nothing else, and `loading` reads it with torch's weights-only loader.
A repository may hold each part several times (safetensors and `.bin`, in singles and as `fp16` variant, whole or in
shards); one of them is chosen by its name, the same way for a folder and for what is downloaded.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ..errors import BackboneError
from .specs import ADAPTER, ROOT, TEMPORAL, backbone_folder, backbones, known_backbone

__all__ = [
    "PARTS",
    "Download",
    "Weights",
    "NETWORKS",
    "choose_weights",
    "cut_short",
    "downloaded",
    "fetch",
    "fetch_adapter",
    "forget_origin",
    "needed_files",
    "network_part",
    "plan_downloads",
]

log = logging.getLogger(__name__)

NETWORKS = ("unet", "transformer")  # a pipeline has one of them
PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")  # and all of these
_MODELS = (*NETWORKS, *PARTS[:2])
INDEX = "model_index.json"


@dataclass(frozen=True)
class Weights:
    """The file names of one part's weights, a shards' index among them; `safe`: safetensors, else `.bin`."""

    files: tuple[str, ...]
    safe: bool
    variant: str | None


def network_part(parts: Iterable[str]) -> str:
    """Which of a pipeline's parts, by their names, is its network: the UNet where there is neither."""
    there = set(parts)
    return next((part for part in NETWORKS if part in there), NETWORKS[0])


def choose_weights(part: str, names: Iterable[str], *, halves_first: bool = False) -> Weights | None:
    """The weights among the file names of a part's folder; None where none are there in full.

    Safetensors before `.bin`, and of each the plain files before their fp16 variant, or with `halves_first` after.
    """
    names = set(names)
    for safe in (True, False):
        stem = "diffusion_pytorch_model" if part != "text_encoder" else "model" if safe else "pytorch_model"
        end = "safetensors" if safe else "bin"
        for half in (halves_first, not halves_first):
            whole = f"{stem}{'.fp16' * half}.{end}"
            variant = "fp16" if half else None
            if whole in names:
                return Weights((whole,), safe, variant)
            index = f"{stem}.{end}.index{'.fp16' * half}.json"
            shard = re.compile(rf"{stem}{'.fp16' * half}-\d+-of-(\d+)\.{end}")
            shards = sorted(name for name in names if shard.fullmatch(name))
            if index in names and shards and len(shards) == int(shards[0].rsplit("-", 1)[1].split(".")[0]):
                return Weights((index, *shards), safe, variant)
    return None


def cut_short(folder: Path) -> Path | None:
    """The first of the chosen weights in a part's folder that do not reach to their end, None where all do."""
    weights = choose_weights(folder.name, (path.name for path in folder.iterdir())) if folder.is_dir() else None
    for path in (folder / name for name in (weights.files if weights else ())):
        if path.suffix == ".bin" and not zipfile.is_zipfile(path):
            return path
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError):
                return path
    return None


def needed_files(names: Iterable[str]) -> list[str]:
    """Of all paths in a repository, those that loading reads: configs, the tokenizer, and of each part's weights the
    smallest kind that is safe; beside them a motion adapter, and all of a tuned pipeline's temporal attention. Raises
    BackboneError naming the parts that are missing."""
    names = list(names)
    network = network_part(name.partition("/")[0] for name in names)
    folders: dict[str, list[str]] = {part: [] for part in (network, *PARTS)}
    for name in names:
        part, _, file = name.partition("/")
        if part in folders and file and "/" not in file:
            folders[part].append(file)
    found: list[str] = []
    missing = []
    for part, files in folders.items():
        # the UNet never runs in singles on a GPU, so the halves are all that is wanted of a download
        weights = choose_weights(part, files, halves_first=True) if part in _MODELS else None
        settings = files if part == "tokenizer" else [f for f in files if f in ("config.json", f"{part}_config.json")]
        if not settings or (part in _MODELS and weights is None):
            missing.append(f"{part}/")
        found += [f"{part}/{file}" for file in (*sorted(settings), *(weights.files if weights else ()))]
    if missing:
        raise BackboneError(f"no complete {', '.join(missing)} as diffusers saves a pipeline")
    if network == "transformer":  # what else the pipeline holds tells whether it can be used
        found += [name for name in names if name == INDEX]
    adapter = [name.removeprefix(f"{ADAPTER}/") for name in names if name.startswith(f"{ADAPTER}/")]
    found += [f"{ADAPTER}/{file}" for file in (_adapter_files(adapter) if adapter else ())]
    return found + sorted(name for name in names if name.startswith(f"{TEMPORAL}/"))


def _adapter_files(names: Iterable[str]) -> list[str]:
    """The same of the repository of a motion adapter."""
    names = set(names)
    weights = choose_weights(ADAPTER, names, halves_first=True)
    if weights is None or "config.json" not in names:
        raise BackboneError("no complete motion adapter as diffusers saves one")
    return ["config.json", *weights.files]


def forget_origin(folder: Path) -> None:
    """Takes out of a saved pipeline's configs where its parts came from: this machine's own matter."""
    for config in (*folder.glob("model_index.json"), *folder.glob("*/*config.json")):
        told = json.loads(config.read_text())
        if told.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(told, indent=2) + "\n")


@dataclass(frozen=True)
class Download:
    """What fetching a model would do: `files` are all that it needs, `missing` those that are not here or of another
    size than the hub's, `bytes` theirs (None where the hub does not say), `licence` that of the weights."""

    hub_id: str
    licence: str
    files: tuple[str, ...]
    missing: tuple[str, ...]
    bytes: int | None

    def __str__(self) -> str:
        if not self.missing:
            return f"{self.hub_id} is here already. Licence of the weights: {self.licence}."
        pickled = sum(name.endswith(".bin") for name in self.missing)
        note = f" {pickled} of the files are .bin; only tensors are read from them." if pickled else ""
        size = "an unknown size" if self.bytes is None else f"{self.bytes / 1e9:.1f} GB"
        return (
            f"Licence of the weights of {self.hub_id}: {self.licence}. Model card: https://huggingface.co/{self.hub_id}\n"
            f"To download: {len(self.missing)} files, {size}.{note}"
        )

    def run(self) -> Path:
        """Downloads what is missing, with bars on standard error, and returns the folder. One that was interrupted goes
        on where it stopped; a file that is cut short is fetched anew. Raises BackboneError."""
        from huggingface_hub import snapshot_download

        for path in (_cached(self.hub_id, file) for file in self.missing):
            if path:
                path.resolve().unlink()  # the blob, then what points to it
                path.unlink(missing_ok=True)
        try:
            return Path(snapshot_download(self.hub_id, allow_patterns=list(self.files)))
        except Exception as error:
            raise _refusal(self.hub_id, error) from error


def _cached(hub_id: str, file: str) -> Path | None:
    """Where a file of a repository lies here."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, file)
    return Path(found) if isinstance(found, str) else None


def _is_whole(path: Path | None, size: int | None) -> bool:
    return path is not None and size in (None, path.stat().st_size)


class _Repository(NamedTuple):
    """A repository on the hub that a backbone needs, which of its files, and the licence that its spec tells."""

    hub_id: str
    wanted: Callable[[Iterable[str]], list[str]] = needed_files
    licence: str | None = None

    def plan(self) -> Download:
        """What fetching it would do; asks the hub, raises BackboneError."""
        from huggingface_hub import HfApi

        try:
            info = HfApi().model_info(self.hub_id, files_metadata=True)
        except Exception as error:  # the hub's client raises many kinds: no network, no such model, no access
            raise _refusal(self.hub_id, error) from error
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        try:
            files = self.wanted(sizes)
        except BackboneError as error:
            raise BackboneError(f"{self.hub_id} is no backbone that FreeMask can use: it holds {error}.") from None
        missing = [file for file in files if not _is_whole(_cached(self.hub_id, file), sizes[file])]
        known = [sizes[file] for file in missing]
        card: Any = info.card_data
        licence = self.licence or (card and card.get("license")) or "unknown: see its model card"
        total = None if None in known else sum(size for size in known if size)
        return Download(self.hub_id, licence, tuple(files), tuple(missing), total)

    def downloaded(self) -> Path | None:
        """Where an earlier download lies; None where there was none or it is not complete."""
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(self.hub_id, local_files_only=True))
            self.wanted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.exists())
        except (OSError, ValueError, BackboneError):
            return None
        return folder

    def fetch(self) -> Path:
        """Its folder, made or completed here. Licence and size are logged first; without a network, what was
        downloaded before serves."""
        try:
            download = self.plan()
        except BackboneError:
            folder = self.downloaded()
            if folder is None:
                raise
            return folder
        if download.missing:
            log.warning("%s", download)
        return download.run()


def _repositories(name: str) -> tuple[_Repository, ...]:
    """Those of a backbone: its pipeline's, unless that is a folder, and its motion adapter's."""
    spec = known_backbone(name)
    hub_id, adapter = (spec.hub_id, spec.motion_adapter) if spec else (name, None)
    found = (_Repository(hub_id, licence=spec.licence if spec else None),) if hub_id else ()
    return (*found, _Repository(adapter, _adapter_files)) if adapter and not (ROOT / adapter).is_dir() else found


def plan_downloads(name: str) -> tuple[Download, ...]:
    """What downloading a backbone, by short name or hub id, would fetch, a repository each; asks the hub, raises
    BackboneError."""
    return tuple(repository.plan() for repository in _repositories(name))


def fetch(name: str) -> Path:
    """The folder of a backbone: its own, or that of its download, which is made or completed here.

    Before anything is downloaded the licence and the size are logged. Without a network, what was downloaded before
    serves. Raises SettingError for an unknown name, BackboneError where there is nothing to be had.
    """
    return backbone_folder(name) or _repositories(name)[0].fetch()


def fetch_adapter(name: str) -> Path | None:
    """The folder of the motion adapter that a backbone's spec names, as `fetch`; None where it names none."""
    spec = known_backbone(name)
    if not spec or not spec.motion_adapter:
        return None
    folder = ROOT / spec.motion_adapter
    return folder if folder.is_dir() else _repositories(name)[-1].fetch()


def downloaded(name: str) -> Path | None:
    """Where an earlier download of a backbone's pipeline lies; None where there was none or anything is missing."""
    folders = [repository.downloaded() for repository in _repositories(name)]
    return folders[0] if all(folders) else None


def _refusal(hub_id: str, error: Exception) -> BackboneError:
    """What went wrong at the hub, and the cure."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    folder = "give the path of a folder that holds it"
    if isinstance(error, GatedRepoError):
        why = f"is gated: accept its terms on its page and log in with `hf auth login`, or {folder}"
    elif isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        short = ", ".join(spec.name for spec in backbones())
        why = f"is not on the hub, or is private: check the name (short names: {short}), log in with `hf auth login`"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        why = "does not fit on the disk: make room, or set HF_HOME to a folder on a larger disk"
    else:
        why = f"could not be fetched ({type(error).__name__}): check the network and try again, or {folder}"
    return BackboneError(f"The model {hub_id!r} {why}.")
