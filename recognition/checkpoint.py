"""Checkpoints that survive a crash and are checked when they are read: one folder per saved step.

    checkpoints/step_00001200/config.yaml      the config of the run
    checkpoints/step_00001200/model.pt         the weights of the backbone
    checkpoints/step_00001200/shared.pt        optimizer of the backbone, schedule, position, step
    checkpoints/step_00001200/rank_0.pt        what rank 0 alone holds: its centers, or class pool
    checkpoints/step_00001200/manifest.json    size and sha256 of each of these files

A folder is written under another name, flushed to disk, and then renamed. Files are loaded with
`torch.load(weights_only=True)`, so nothing in a checkpoint is executed.
"""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from data.files import atomic_write, sync_folder
from recognition.config import ConfigError
from recognition.distributed import Ranks, texts_of_all

State = dict[str, Any]
_STEP = re.compile(r"step_(\d{8,})")
_PIECE = 1 << 22  # bytes that are hashed or copied at a time
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a crash or a bad disk does to a file; other errors, such as a lack of rights, are told.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ELOOP)
_FAILED = "failed: "


class SaveFailed(RuntimeError):
    """A checkpoint or model.pt can't be written. Nothing that was saved before is lost."""


class Damaged(ValueError):
    """A checkpoint is not as it was written; the message names the file."""


@dataclass(frozen=True)
class Sum:
    """What a file held when it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory.

    locals_: the own state of every rank that saved; only that of this rank if as many ranks load.
    """

    path: Path
    shared: State
    locals_: list[State]


def save_tensors(path: Path, state: Mapping[str, Any]) -> Sum:
    """Write `state` (tensors and plain values) with torch.save, whole or not at all.

    An OSError names the file; that of a full disk also says how many bytes were needed.
    """
    summed: _SummedFile | None = None
    try:
        with atomic_write(path) as file:
            summed = _SummedFile(file)
            torch.save(dict(state), summed)  # type: ignore[arg-type]
            if summed.error:
                raise summed.error
    except OSError as error:
        if summed is None or error.errno not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        what = f"{error.strerror}; the file needs {summed.bytes:,} bytes, and {free:,} are free"
        raise OSError(error.errno, what, str(path)) from None
    return summed.sum()


class _SummedFile:
    """A file that hashes what torch.save writes into it.

    torch.save replaces an error of `write` by one without its cause. Therefore the first error is
    kept, and what comes after it is only counted.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: memoryview | bytes) -> int:
        self.bytes += len(data)
        if self.error is None:
            self._digest.update(data)
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """The file is flushed when it is closed."""

    def sum(self) -> Sum:
        return Sum(self.bytes, self._digest.hexdigest())


def load_tensors(path: Path) -> State:
    """What `save_tensors` wrote, on the CPU.

    Raises FileNotFoundError, or a ValueError that names a file which is damaged or of another kind.
    torch does not check the checksums in its files, so this does.
    """
    with open(path, "rb") as file:
        try:
            check_records(file, os.fstat(file.fileno()).st_size)
            file.seek(0)
            return _read_tensors(file)
        except Exception as error:  # zipfile and torch raise many kinds for damaged files
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path}: not a readable weights file ({first})") from None


def check_records(file: IO[bytes], size: int) -> None:
    """Compare the records of a file of torch.save, a zip archive, with their checksums."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        # A record that unpacks to more than the file holds would cost more than it is worth.
        stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        if not stored or sum(record.file_size for record in records) > size:
            raise ValueError("its records are compressed or overlap")
        if broken := archive.testzip():
            raise ValueError(f"the checksum of {broken} is wrong")


def _read_tensors(file: IO[bytes]) -> State:
    state: State = torch.load(file, map_location="cpu", weights_only=True)
    return state


def save(
    folder: Path,
    step: int,
    shared: Mapping[str, Any],
    local: Mapping[str, Any],
    ranks: Ranks,
    *,
    config: str,
    device: torch.device,
    keep: int,
    spare: Path | None = None,
) -> Path:
    """Write the checkpoint of `step`, keep the newest `keep` and `spare`, and remove the others.

    Every rank calls it. shared: the state that is equal on all ranks, with the backbone's weights
    as `backbone`. local: the state that only this rank holds. config: the text of config.yaml.
    device: where ranks exchange what they wrote.

    Raises SaveFailed on all ranks if one of them can't write; then no file is left behind.
    """
    first = ranks.rank == 0
    final = folder / f"step_{step:08d}"
    partial = folder / f"{final.name}.partial"

    def prepare() -> str:
        if first:
            folder.mkdir(exist_ok=True)
            _remove(partial)
            partial.mkdir()
        return ""

    def write() -> str:
        sums = {f"rank_{ranks.rank}.pt": save_tensors(partial / f"rank_{ranks.rank}.pt", local)}
        if first:
            others = {name: value for name, value in shared.items() if name != "backbone"}
            sums["config.yaml"] = _save_text(partial / "config.yaml", config)
            sums["model.pt"] = save_tensors(partial / "model.pt", shared["backbone"])
            sums["shared.pt"] = save_tensors(
                partial / "shared.pt", {**others, "world": ranks.world}
            )
        return json.dumps({name: asdict(one) for name, one in sums.items()})

    def finish() -> str:
        if first:
            files = {name: one for text in written for name, one in json.loads(text).items()}
            manifest = {"step": step, "world": ranks.world, "files": files}
            _save_text(partial / "manifest.json", json.dumps(manifest, indent=1))
            # The checkpoint exists from this renaming on; older ones are removed only after it.
            _replace_folder(partial, final)
            for old in checkpoints(folder)[:-keep]:
                if old not in (spare, final):
                    _remove(old)
        return ""

    try:
        _on_all(prepare, folder, ranks, device)
        written = _on_all(write, folder, ranks, device)
        _on_all(finish, folder, ranks, device)
    except SaveFailed:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def publish_model(path: Path, target: Path, ranks: Ranks, device: torch.device) -> None:
    """Make `target` a copy of the model.pt in the checkpoint `path`, if it is not one.

    Every rank calls it, and rank 0 writes. Raises SaveFailed on all ranks if it can't.
    """

    def copy() -> str:
        if ranks.rank == 0:
            wanted = _read_manifest(path).files["model.pt"]
            if not _holds(target, wanted):
                with open(path / "model.pt", "rb") as source, atomic_write(target) as file:
                    shutil.copyfileobj(source, file, _PIECE)
        return ""

    _on_all(copy, path.parent, ranks, device)


def _on_all(
    action: Callable[[], str], folder: Path, ranks: Ranks, device: torch.device
) -> list[str]:
    """What `action` returns on each rank. An OSError of one rank is a SaveFailed of all.

    folder: the checkpoints, of which the newest is named in the error.
    """
    try:
        text = action()
    except OSError as error:
        text = f"{_FAILED}{error.filename or folder}: {error.strerror or error}"
    texts = texts_of_all(text, ranks, device)
    errors = [text.removeprefix(_FAILED) for text in texts if text.startswith(_FAILED)]
    if errors:
        saved = newest(folder)
        left = f"--resume goes on from {saved}" if saved else "there is no checkpoint"
        raise SaveFailed(f"{errors[0]}; {left}")
    return texts


def load(path: Path, ranks: Ranks | None = None) -> tuple[State, list[State]]:
    """(shared, locals_) of a checkpoint, after a check of the files that are read.

    locals_: the own state of every rank that saved, in order. ranks: those that load; if as many
    saved, only this rank's state is read. Raises Damaged for a file that is not as it was written.
    """
    manifest = _read_manifest(path)
    if not _holds(path / "config.yaml", manifest.files["config.yaml"]):
        raise Damaged(f"{path / 'config.yaml'}: is not as it was written")
    same = ranks is not None and ranks.world == manifest.world
    wanted = [ranks.rank] if ranks is not None and same else range(manifest.world)
    shared = _load_checked(path / "shared.pt", manifest)
    shared["backbone"] = _load_checked(path / "model.pt", manifest)
    locals_ = [_load_checked(path / f"rank_{rank}.pt", manifest) for rank in wanted]
    return shared, locals_


def load_newest(folder: Path, ranks: Ranks, device: torch.device) -> Loaded | None:
    """The newest checkpoint that is not damaged, the same one on all ranks; None if there is none.

    Every rank calls it. Rank 0 tells of each damaged checkpoint, and renames it to
    `step_N.damaged`. Raises ConfigError if there are checkpoints, but all are damaged.
    """
    left = checkpoints(folder) if ranks.rank == 0 else []
    damaged: dict[Path, str] = {}
    while name := texts_of_all(left.pop().name if left else "", ranks, device)[0]:
        try:
            loaded, problem = Loaded(folder / name, *load(folder / name, ranks)), ""
        except Damaged as error:
            loaded, problem = None, str(error)
        problems = [text for text in texts_of_all(problem, ranks, device) if text]
        if loaded is not None and not problems:
            if ranks.rank == 0:
                _set_aside(damaged)
                print(f"resume from {loaded.path}", flush=True)
            return loaded
        damaged[folder / name] = problems[0]
    if damaged:
        raise ConfigError(
            f"{folder}: no checkpoint is whole ({'; '.join(damaged.values())}); restore one from a "
            "copy, or start again in another folder"
        )
    return None


def _set_aside(damaged: Mapping[Path, str]) -> None:
    for path, why in damaged.items():
        aside = path.with_name(f"{path.name}.damaged")
        _remove(aside)
        path.rename(aside)
        print(f"damaged checkpoint: {why}; its folder is {aside.name} now", flush=True)


def saved_config(folder: Path) -> tuple[Path, str] | None:
    """Path and text of the config in the newest checkpoint where it is not damaged."""
    for path in reversed(checkpoints(folder)):
        file = path / "config.yaml"
        try:
            if _holds(file, _read_manifest(path).files["config.yaml"]):
                return file, file.read_text()
        except Damaged:
            continue
    return None


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, whether damaged or not, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(
        (path for path in folder.glob("step_*") if _STEP.fullmatch(path.name)),
        key=lambda path: int(path.name.removeprefix("step_")),
    )


def remove_partial(folder: Path) -> None:
    """Remove what a crash while saving left, and complete what it had almost replaced."""
    for path in folder.glob("step_*.partial"):
        _remove(path)
    for path in folder.glob("step_*.replaced"):
        final = path.with_suffix("")
        _remove(path) if final.exists() else path.rename(final)


@dataclass(frozen=True)
class _Manifest:
    world: int
    files: Mapping[str, Sum]


def _read_manifest(path: Path) -> _Manifest:
    """The manifest of the checkpoint `path`, or Damaged."""
    file = path / "manifest.json"
    try:
        text = file.read_bytes()
    except OSError as error:
        raise _as_damage(file, error) from None
    try:
        tree = json.loads(text)
        step, world, files = int(tree["step"]), int(tree["world"]), dict(tree["files"])
        sums = {name: Sum(int(one["bytes"]), str(one["sha256"])) for name, one in files.items()}
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        raise Damaged(f"{file}: not a readable manifest") from None
    if path.name != f"step_{step:08d}":
        raise Damaged(f"{file}: is that of step {step}")
    own = {f"rank_{rank}.pt" for rank in range(min(world, len(sums)))}
    if sums.keys() != own | {"config.yaml", "model.pt", "shared.pt"}:
        raise Damaged(f"{file}: names other files than those of {world} processes")
    return _Manifest(world, sums)


def _load_checked(path: Path, manifest: _Manifest) -> State:
    """The tensors in a file, or Damaged. They are read from memory, where hashing has left them."""
    try:
        with open(path, "rb") as file:
            if _sum_of(file) != manifest.files[path.name]:
                raise Damaged(f"{path}: is not as it was written")
            file.seek(0)
            return _read_tensors(file)
    except OSError as error:
        raise _as_damage(path, error) from None
    except (pickle.UnpicklingError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"{path}: torch {torch.__version__} can't read this whole file ({first}); use the "
            "version in environment.json"
        ) from None


def _holds(path: Path, wanted: Sum) -> bool:
    """Whether a file exists and has the size and hash `wanted`."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size == wanted.bytes and _sum_of(file) == wanted
    except OSError as error:
        if error.errno in _DAMAGE:
            return False
        raise


def _sum_of(file: IO[bytes]) -> Sum:
    digest, size = hashlib.sha256(), 0
    while piece := file.read(_PIECE):
        digest.update(piece)
        size += len(piece)
    return Sum(size, digest.hexdigest())


def _as_damage(path: Path, error: OSError) -> Exception:
    return Damaged(f"{path}: {error.strerror}") if error.errno in _DAMAGE else error


def _save_text(path: Path, text: str) -> Sum:
    content = text.encode()
    with atomic_write(path) as file:
        file.write(content)
    return Sum(len(content), hashlib.sha256(content).hexdigest())


def _replace_folder(source: Path, target: Path) -> None:
    """Rename a folder. One that has its name already is removed only afterwards."""
    replaced = target.with_name(f"{target.name}.replaced")
    _remove(replaced)
    if target.exists():
        target.rename(replaced)
    source.rename(target)
    sync_folder(target.parent)
    _remove(replaced)


def _remove(path: Path) -> None:
    """Remove a file, a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
