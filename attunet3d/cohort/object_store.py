"""Files in an object store (`s3://…`) and their copies here, each copied whole or not at all.

A store shows an object when all of it has come, a large one when its parts are declared complete;
what was sent is read again and its checksum compared.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attunet3d.core import (
    DependencyError,
    FileError,
    UserError,
    WriteError,
    case_names,
    one_line,
    progress,
    whole_file,
)

AT_ONCE = 8  # transfers
PART_BYTES = 8 << 20  # of a large file's upload; what a connection that is cut costs
IN_PARTS = 2 * PART_BYTES  # size from which s3fs sends a file in parts
EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}  # of this package, by what URLs begin with
_log = logging.getLogger(__name__)


def is_url(text: object) -> bool:
    """Whether a text names something in an object store.

    Example:
        >>> is_url("s3://bucket/scans"), is_url("C:/scans"), is_url("scans")
        (True, False, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]+://", str(text)) is not None


class ObjectStore:
    """Object stores and a folder of copies, `FOLDER/s3/bucket/key` of `s3://bucket/key`.

    Attributes:
        failed: Copies that could not be made, and why; an empty file stands for each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed: dict[Path, str] = {}
        self._versions: dict[Path, tuple[int, int]] = {}  # of what the store has as well

    def path(self, place: str | Path) -> Path:
        """Where the copy of what a URL names lies; a path stays as it is."""
        if not is_url(place):
            return Path(place)
        scheme, _, rest = str(place).partition("://")
        return case_names.inside(self.folder, f"{scheme}/{rest.strip('/')}")

    def url(self, path: Path) -> str:
        """What a copy is a copy of."""
        scheme, *parts = path.relative_to(self.folder).parts
        return f"{scheme}://{'/'.join(parts)}"

    def named(self, text: str) -> str:
        """The text with URLs in the place of copies' paths."""
        return re.sub(rf"{re.escape(str(self.folder))}/([\w+.-]+)/", r"\1://", text)

    def listed(self, url: str, *, missing_ok: bool = False) -> list[str]:
        """URLs of the file that a URL names, or of all files below it."""
        with _told(url, "cannot be listed", FileError):
            system, root = _system(url)
            found = [root] if system.isfile(root) else system.find(root)
        if not found and not missing_ok:
            raise FileError(f"{url}: no such file or folder", value=url, cure="check the URL")
        scheme = url.partition("://")[0]
        return [f"{scheme}://{system._strip_protocol(name).lstrip('/')}" for name in found]

    def fetch(self, urls: Iterable[str], *, patient: bool = False) -> None:
        """Copy files here.

        Args:
            urls: Of files.
            patient: Note what cannot be fetched instead of raising it.
        """
        left = [url for url in dict.fromkeys(urls) if not self.path(url).exists()]

        def fetch(url: str) -> None:
            """Copy one file, or note why it cannot be copied."""
            path = self.path(url)
            try:
                self._fetch(url, path)
            except UserError as error:
                if not patient:
                    raise
                self.failed[path] = str(error)
                path.touch()
            bar.update()

        with progress(len(left), "fetch", "file") as bar, ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(fetch, left):
                pass

    def _fetch(self, url: str, path: Path) -> None:
        whole_file.make_folder(path.parent)
        part = path.with_name(f".{path.name[-100:]}.part")
        with _told(url, "cannot be fetched", FileError):
            system, name = _system(url)
            before = system.info(name)
            system.get_file(name, str(part))
            if part.stat().st_size != before["size"] or system.info(name) != before:
                raise OSError("it changed meanwhile, or the connection was cut")
            part.replace(path)
        self._versions[path] = _version(path)

    def has(self, path: Path) -> bool:
        """Whether the store has a file as it is here."""
        return path.exists() and self._versions.get(path) == _version(path)

    def send(self, path: Path) -> None:
        """Send a file unless the store has it, and make sure that it came whole."""
        if self.has(path):
            return
        url = self.url(path)
        with _told(url, "cannot be written", WriteError), path.open("rb") as file:
            wanted = hashlib.file_digest(file, "sha256").digest()
            system, name = _system(url)
            parts = {"chunksize": PART_BYTES} if url.partition("://")[0] in EXTRAS else {}
            try:
                system.put_file(str(path), name, **parts)
            except Exception:
                if path.stat().st_size < IN_PARTS or not self._came(url, wanted):
                    raise
            if _digest(system, name) != wanted:
                raise OSError("what is there is not what was sent")
        self._versions[path] = _version(path)

    def _came(self, url: str, wanted: bytes) -> bool:
        """Whether an upload in parts was completed, and only the answer lost; else discard them."""
        system, name = _system(url)
        with contextlib.suppress(Exception):
            if _digest(system, name) == wanted:
                return True
        self.sweep(url)
        return False

    def sweep(self, url: str) -> None:
        """Discard the parts of uploads to a URL, or below it, that were never completed.

        S3 keeps, and charges for, what a call that was cut off or killed has sent; other stores
        forget it by themselves.
        """
        system, name = _system(url)
        if not hasattr(system, "list_multipart_uploads"):
            return
        bucket, _, key = name.partition("/")
        try:
            found = system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
            for upload in found.get("Uploads", []):
                if f"{upload['Key']}/".startswith(f"{key}/"):
                    system.abort_mpu(bucket, upload["Key"], upload["UploadId"])
        except Exception as error:
            _log.warning("%s: parts of earlier uploads may be left (%s)", url, one_line(error))

    def remove(self, path: Path) -> None:
        """Delete a file here and in the store, if that is known to have it."""
        path.unlink(missing_ok=True)
        if self._versions.pop(path, None) is None:
            return
        url = self.url(path)
        with _told(url, "cannot be deleted", WriteError):
            system, name = _system(url)
            system.rm_file(name)


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the name there; listings are never taken from memory."""
    import fsspec

    return fsspec.core.url_to_fs(url, use_listings_cache=False)  # type: ignore[no-any-return]


def _digest(system: Any, name: str) -> bytes:
    """SHA-256 of what the store gives."""
    with system.open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _told(url: str, rule: str, kind: type[UserError]) -> Iterator[None]:
    """Tell what a store's package raises, which is of many kinds, in one line."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        extra = EXTRAS.get(url.partition("://")[0])
        cure = f"pip install 'attunet3d[{extra}]'" if extra else "install it"
        raise DependencyError(f"{url}: {one_line(error)}", value=url, cure=cure) from None
    except Exception as error:
        why = one_line(error)[:200] or type(error).__name__
        cure = "check the URL, your rights and the connection; the same call goes on"
        raise kind(f"{url}: {rule} ({why})", value=url, cure=cure) from error
