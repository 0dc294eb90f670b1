"""The checkpoints of a run: written so that none is ever seen half, read so that a damaged one is never used.

    checkpoints/outer-000012/            12 outer steps are measured
    checkpoints/outer-000012-00000350/   and 350 units of the next one: its inner steps, there and back
        state.pt        torch.save of dictionaries, lists, tensors, numbers and text
        part-000000.pt  lists that are too long to be held twice: the first items of one
        manifest.json   version, size and SHA-256 of each, what the bits depend on
    checkpoints/LATEST                   the name of the newest, for people and scripts; nothing here reads it

A checkpoint is written into a folder under another name, synced, and renamed. One that has its name already, damaged or
written before an outer step was begun again, stays beside it as replaced-... until the next one is there. The last two
are kept, and the one that was written first after the best outer step. Names sort in the order of progress. Files are
read by torch's restricted unpickler (`weights_only=True`), after their hashes have been compared.

Where the tree holds an iterator, its items are written as they come, and come back as an iterator, which reads them as
they are asked for: the states that a run keeps in slots may fill the memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from hyperopt_cli.errors import ANOTHER_RUN, CheckpointError, StorageError, UsageError
from hyperopt_cli.run_directory.directory import LATEST
from hyperopt_cli.run_directory.json_files import read_json, write_json, write_text

VERSION = 3
NAME = re.compile(r"outer-\d{6,}(-\d{8,})?")
STATE, MANIFEST = "state.pt", "manifest.json"
PART = re.compile(r"part-\d{6,}\.pt")
PARTS = "parts of a list"  # the key of what stands for an iterator
PART_BYTES = 2**26
REPLACED = re.compile(rf"replaced-({NAME.pattern})-[0-9a-f]{{8}}")
KEPT = 2


PLAIN = {Tensor, torch.nn.Parameter, str, int, float, bool, type(None)}


class Checkpoint(NamedTuple):
    """A checkpoint that was read whole.

    Attributes:
        name: the name of its folder.
        tree: what was kept, tensors on the host; its iterators can be read once, as long as the checkpoint is there.
        bits_depend_on: threads, device and so on of the process that wrote it.
        passed_over: newer checkpoints that cannot be used, each with the reason.
    """

    name: str
    tree: dict[str, Any]
    bits_depend_on: dict[str, Any]
    passed_over: tuple[str, ...]


class Checkpoints:
    """The checkpoints in one folder.

    Args:
        folder: usually `RunDirectory.checkpoints`; it is made with the first checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Returns the names of all checkpoints, the newest first; they are not read."""
        if not self._folder.is_dir():
            return []
        return sorted((path.name for path in self._folder.iterdir() if NAME.fullmatch(path.name)), reverse=True)

    def newest(self) -> Checkpoint | None:
        """Returns the newest checkpoint that can be used; None if there is none at all.

        Raises:
            CheckpointError: there are checkpoints, and none can be used; nothing is deleted.
        """
        passed_over: list[str] = []
        for name in self.names():
            try:
                tree, depends = _read(self._folder / name)
            except _DamagedError as error:
                passed_over.append(f"{name}: {error}")
            else:
                return Checkpoint(name, tree, depends, tuple(passed_over))
        if passed_over:
            raise CheckpointError(
                f"{self._folder}: no checkpoint can be used ({'; '.join(passed_over)}). Nothing was deleted; restore "
                "one from a copy, or start another run"
            ).remedied(ANOTHER_RUN)
        return None

    def clean(self) -> None:
        """Drops what a killed process had begun to write; call it only while no other process writes here.

        A checkpoint that was being replaced when the process was killed is put back.
        """
        for path, name in self._replaced():
            if not (self._folder / name).exists():
                path.rename(self._folder / name)
        for path in self._folder.glob(".outer-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def write(
        self, outer_step: int, progress: int, tree: Mapping[str, Any], bits_depend_on: Mapping[str, Any], is_best: bool
    ) -> str:
        """Adds a checkpoint, and drops those that are no longer needed.

        Args:
            outer_step: how many outer steps are measured.
            progress: how much of the next outer step is done; 0 where it is not begun.
            tree: what is kept: dictionaries, lists, tensors, numbers, text, and iterators of these.
            bits_depend_on: what the bits of this process depend on, such as its device.
            is_best: whether the best outer step is in no checkpoint before this one.

        Returns:
            The name of the checkpoint.

        Raises:
            StorageError: it cannot be written; the checkpoints that were there are as before.
        """
        name = f"outer-{outer_step:06d}" + (f"-{progress:08d}" if progress else "")
        temporary = self._folder / f".{name}.{secrets.token_hex(4)}.tmp"
        try:
            temporary.mkdir(parents=True)
            _write(temporary, tree, {"outer_step": outer_step, "progress": progress, "best": is_best}, bits_depend_on)
            target = self._folder / name
            if target.exists():  # out of the way, and only deleted once the new one is there
                target.rename(self._folder / f"replaced-{name}-{secrets.token_hex(4)}")
            temporary.rename(target)
            _sync(self._folder)
            write_text(self._folder / LATEST, name + "\n")
        except OSError as error:
            raise StorageError(
                f"{self._folder}: a checkpoint can't be written ({error.strerror or error}); the last one is intact. "
                "Make room or make it writable"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._drop(name, is_best)
        return name

    def _replaced(self) -> list[tuple[Path, str]]:
        """Returns the checkpoints that were moved out of the way, with the names that they had."""
        found = ((path, REPLACED.fullmatch(path.name)) for path in self._folder.glob("replaced-*"))
        return [(path, match[1]) for path, match in found if match is not None]

    def _drop(self, newest: str, is_best: bool) -> None:
        """Drops all but the last two checkpoints, and the first that was written after the best outer step."""
        for path, name in self._replaced():
            if name != newest:
                shutil.rmtree(path, ignore_errors=True)
        for name in self.names():
            if name > newest:  # of an outer step that was begun again
                shutil.rmtree(self._folder / name, ignore_errors=True)
        older = [name for name in self.names() if name < newest]
        best = next((name for name in older if not is_best and _is_best(self._folder / name)), None)
        for name in older[KEPT - 1 :]:
            if name != best:
                shutil.rmtree(self._folder / name, ignore_errors=True)


class _DamagedError(Exception):
    """A checkpoint cannot be used; the message says why."""


def on_host(tree: Any) -> Any:
    """Returns the tree with its tensors on the host, in storage of their own, and its iterators as lists.

    Raises:
        TypeError: the tree holds a type that the restricted unpickler would not read.
    """
    tree = tree_map_only(Iterator, lambda items: [on_host(item) for item in items], tree)
    for leaf in tree_leaves(tree):
        if type(leaf) not in PLAIN:
            raise TypeError(f"a checkpoint holds a {type(leaf).__name__}: {leaf!r}")
    return tree_map_only(Tensor, _alone, tree)


def _alone(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    return x if x.untyped_storage().nbytes() == x.numel() * x.element_size() else x.clone()


def _write(folder: Path, tree: Mapping[str, Any], what: Mapping[str, Any], depends: Mapping[str, Any]) -> None:
    files: dict[str, dict[str, Any]] = {}

    def put(name: str, content: Any) -> str:
        with (folder / name).open("xb") as file:
            save(content, file)
            file.flush()
            os.fsync(file.fileno())
            files[name] = {"bytes": file.tell(), "sha256": _sha256(folder / name)}
        return name

    def in_parts(items: Iterator[Any]) -> dict[str, list[str]]:
        return {PARTS: [put(f"part-{len(files):06d}.pt", part) for part in _parts(items)]}

    put(STATE, on_host(tree_map_only(Iterator, in_parts, dict(tree))))
    write_json(folder / MANIFEST, {"version": VERSION, **what, "files": files, "bits_depend_on": depends})
    _sync(folder)


def save(content: Any, file: IO[bytes]) -> None:
    """Saves like `torch.save`, but raises the file's own OSError, of which torch may make a RuntimeError."""
    wrapped = _Remembering(file)
    try:
        torch.save(content, cast(IO[bytes], wrapped))
    except RuntimeError:
        if wrapped.error is not None:
            raise wrapped.error from None
        raise


class _Remembering:
    """A file that remembers the last error that it has raised."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = error
            raise


def _parts(items: Iterator[Any]) -> Iterator[list[Any]]:
    """Yields the items in short lists, on the host; each list is emptied before the next one is made."""
    part: list[Any] = []
    size = 0
    for item in items:
        part.append(on_host(item))
        size += sum(x.nbytes for x in tree_leaves(part[-1]) if isinstance(x, Tensor))
        if size >= PART_BYTES:
            yield part
            part.clear()
            size = 0
    if part:
        yield part


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        manifest = read_json(folder / MANIFEST)
    except (UsageError, OSError) as error:
        raise _DamagedError(str(error).split(";")[0].removeprefix(f"{folder}/")) from None
    version, files, depends = (manifest.get(key) for key in ("version", "files", "bits_depend_on"))
    if version != VERSION:
        raise _DamagedError(f"{MANIFEST} has version {version!r}, this hyperopt reads {VERSION}")
    if not isinstance(files, dict) or STATE not in files or not isinstance(depends, dict):
        raise _DamagedError(f"{MANIFEST} is not a checkpoint's")
    for name, listed in files.items():
        if not (name == STATE or PART.fullmatch(name)) or not isinstance(listed, dict):
            raise _DamagedError(f"{MANIFEST} is not a checkpoint's")
        try:
            size = (folder / name).stat().st_size
            if size != listed.get("bytes"):
                raise _DamagedError(f"{name} has {size} bytes instead of {listed.get('bytes')}")
            digest = _sha256(folder / name)
        except OSError as error:
            raise _DamagedError(f"{name} can't be read ({error})") from None
        if digest != listed.get("sha256"):
            expected = str(listed.get("sha256"))
            raise _DamagedError(f"{name} has the SHA-256 {digest[:12]}... instead of {expected[:12]}...")
    tree = _load(folder / STATE)
    if not isinstance(tree, dict):
        raise _DamagedError(f"{STATE} holds no dictionary")
    try:
        whole: dict[str, Any] = tree_map(
            lambda x: _items(folder, x, files) if _is_in_parts(x) else x, tree, is_leaf=_is_in_parts
        )
    except (KeyError, TypeError) as error:
        raise _DamagedError(f"{MANIFEST} lacks a part of it ({error})") from None
    return whole, depends


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever stands there, another checkpoint may be good
        raise _DamagedError(
            f"{path.name} can't be read ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from None


def _is_in_parts(x: Any) -> bool:
    return isinstance(x, dict) and x.keys() == {PARTS}


def _items(folder: Path, stands_for: Mapping[str, list[str]], files: Mapping[str, Any]) -> Iterator[Any]:
    """Returns an iterator over the items, which are read part by part when they are asked for.

    Raises:
        KeyError: the manifest lacks a part; this is raised before anything is read.
    """
    paths = [folder / name for name in stands_for[PARTS] if files[name]]

    def read() -> Iterator[Any]:
        for path in paths:
            try:
                part = _load(path)
            except _DamagedError as error:
                raise CheckpointError(
                    f"{path.parent} was changed while it was read ({error}); continue again"
                ) from None
            while part:
                yield part.pop(0)

    return read()


def _is_best(folder: Path) -> bool:
    try:
        return read_json(folder / MANIFEST).get("best") is True
    except (UsageError, OSError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Syncs a folder, so that names in it last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
