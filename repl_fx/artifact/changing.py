"""How files come into an artifact: all of them at one moment, or none.

    DIR/manifest.json          names the other files and where each lies; replaced by a rename, which is the moment
    DIR/.repl-fx-XXXXXXXX/     files on their way

A change writes its files into a directory of its own inside the artifact, and renames a manifest that names them there
over the one before. From then on the artifact is the new one. What the old one had is removed, and each file gets its
own name as a second one (a hard link: nothing is copied), before a manifest that names it there takes the place of the
last. Whenever that is cut short, the manifest names files that are whole, all of the old artifact or all of the new;
the next change finishes what is left.

The directory itself stays where it is. It may be the working directory, or the root of a file system, and it may hold
files of others: a file goes only where its bytes are those that a manifest says repl-fx wrote.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError

from repl_fx.arguments import require_path
from repl_fx.artifact.manifest import MANIFEST, UNSETTLED, File, Manifest, read_manifest
from repl_fx.artifact.places import COMPRESSION
from repl_fx.environment.files import replacing, synchronise
from repl_fx.errors import ArtifactError, OutputError, one_line
from repl_fx.sources.source import hash_file

_UNSETTLED_NAME = re.compile(rf"{re.escape(UNSETTLED)}[a-z0-9_]{{8}}")


@dataclass(frozen=True)
class DirectoryChange:
    """Files on their way into an artifact.

    Attributes:
        directory: the artifact.
        place: where to write the files, each under its own name.
    """

    directory: Path
    place: Path

    def require_own(self, names: Collection[str]) -> None:
        """Refuse names of files to be written under which the artifact has files that repl-fx did not write."""
        _require_own(self.directory, names, _files_of(self.directory))

    def commit(self, manifest: Manifest, *, keep: Collection[str] = ()) -> None:
        """Make the files that lie in `place` those of the artifact.

        Args:
            manifest: all that it says, but for the files.
            keep: names of files of the artifact before that stay.

        Raises:
            OutputError: a file that repl-fx did not write has the name of one of them.
            OSError: a file cannot be written; the artifact is as it was.
        """
        before = _files_of(self.directory)
        fresh = {}
        for file in sorted(self.place.iterdir()):
            synchronise(file)
            fresh[file.name] = File(at=f"{self.place.name}/{file.name}", sha256=hash_file(file))
        kept = {name: file for name, file in before.items() if name in keep and name not in fresh}
        gone = tuple(file for name, file in before.items() if name not in kept)
        _require_own(self.directory, fresh, before)
        synchronise(self.place)
        _put(self.directory, msgspec.structs.replace(manifest, files={**kept, **fresh}, gone=gone))
        # The artifact is whole, whatever becomes of the rest.
        with suppress(OSError):
            _settle(self.directory)


@contextmanager
def changing(directory: str | Path, *, force: bool | None = None) -> Iterator[DirectoryChange]:
    """A change of an artifact, or of a directory that becomes one; nothing stays of a change without a commit.

    Args:
        force: see `require_free`; None where the place is that of an artifact that stays.

    Raises:
        OutputError: the directory cannot be written, is being written by another process, or is taken.
    """
    target = _place(directory)
    made = [path for path in (target, *target.parents) if not path.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if force is not None:
                _require_free(target, force=force)
            _settle(target)
            place = Path(tempfile.mkdtemp(prefix=UNSETTLED, dir=target))
            # The directory of a file that is read by others is read by them, too.
            place.chmod(target.stat().st_mode & 0o777)
            try:
                yield DirectoryChange(target, place)
            finally:
                # A manifest that cannot be read may name any of them.
                with suppress(ArtifactError):
                    _drop_unsettled(target, _files_of(target))
    except (OSError, SafetensorError) as problem:
        why = problem.strerror or str(problem) if isinstance(problem, OSError) else one_line(problem)
        raise OutputError(f"cannot write {target}: {why}; free some space, or choose another place") from problem
    finally:
        for path in made:
            # Those that stayed empty: no more than was there before.
            with suppress(OSError):
                path.rmdir()


def require_free(directory: str | Path, *, force: bool) -> None:
    """Refuse a place that is taken, before any work is done: a file, or a directory that is not empty.

    The state of a compression does not count: its artifact comes to lie beside it.

    With `force`: a directory that is no artifact, or an artifact one of whose files repl-fx did not write.
    """
    target = _place(directory)
    if target.is_dir():
        with _locked(target):
            _require_free(target, force=force)


def _place(directory: str | Path) -> Path:
    require_path(directory, "the directory of an artifact")
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; give a directory")
    return target


def _require_free(target: Path, *, force: bool) -> None:
    if all(_is_unsettled(path) or path.name == COMPRESSION for path in target.iterdir()):
        return
    if not force:
        raise OutputError(f"{target} is not empty; choose another place, or replace it with --force (force=True)")
    try:
        files = read_manifest(target).files
    except ArtifactError as problem:
        raise OutputError(f"--force replaces artifacts only: {problem}") from problem
    _require_own(target, files, files)


def _require_own(directory: Path, names: Collection[str], files: Mapping[str, File]) -> None:
    for name in names:
        path, known = directory / name, files.get(name)
        if (path.exists() or path.is_symlink()) and (known is None or not _is_file(path, known)):
            raise OutputError(f"{path} is not as repl-fx wrote it; move it away, or choose another place")


def _settle(directory: Path) -> None:
    """Finish what a change left after its commit, and drop what others left before theirs."""
    try:
        manifest = read_manifest(directory)
    except ArtifactError:
        # No artifact yet: only what was never part of one goes. Of one that is damaged, nothing does.
        if not (directory / MANIFEST).exists():
            _drop_unsettled(directory, {})
        return
    used = {file.at for file in manifest.files.values()}
    for file in manifest.gone:
        if file.at not in used and _is_file(directory / file.at, file):
            (directory / file.at).unlink()
    files = {}
    for name, file in manifest.files.items():
        settled = file.at == name or _named(directory / file.at, directory / name, file)
        files[name] = File(at=name, sha256=file.sha256) if settled else file
    if manifest.gone or files != manifest.files:
        synchronise(directory)
        _put(directory, msgspec.structs.replace(manifest, files=files, gone=()))
    _drop_unsettled(directory, files)


def _named(unsettled: Path, path: Path, file: File) -> bool:
    """Give a file its own name, too; False where another file has it."""
    if path.exists() or path.is_symlink():
        return _is_file(path, file)
    try:
        os.link(unsettled, path)
    except OSError as problem:
        if problem.errno == errno.EEXIST or not unsettled.exists():
            return False
        # A file system without hard links.
        copy = unsettled.with_name(f"{unsettled.name}.copy")
        shutil.copyfile(unsettled, copy)
        synchronise(copy)
        copy.rename(path)
    return True


def _put(directory: Path, manifest: Manifest) -> None:
    """Replace the manifest: the moment at which a change takes place."""
    with replacing(directory / MANIFEST, prefix=UNSETTLED, durable=True) as written:
        written.write_text(manifest.to_json())


def _files_of(directory: Path) -> dict[str, File]:
    return read_manifest(directory).files if (directory / MANIFEST).exists() else {}


def _is_file(path: Path, file: File) -> bool:
    return path.is_file() and hash_file(path) == file.sha256


def _is_unsettled(path: Path) -> bool:
    return bool(_UNSETTLED_NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _drop_unsettled(directory: Path, files: Mapping[str, File]) -> None:
    """Remove the directories of changes in which none of these files lies; the lock says that none is alive."""
    used = {file.at.partition("/")[0] for file in files.values()}
    for path in directory.iterdir():
        if _is_unsettled(path) and path.name not in used:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let no other process change the directory meanwhile; a process that dies lets go."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{directory} is being written by another process; wait, or choose another place"
            ) from None
        except OSError:
            # A file system without locks, such as one on a network.
            pass
        yield
    finally:
        os.close(handle)
