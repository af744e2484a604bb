"""The file system and path behind a local path or an object-store URL.

Stores that pyarrow knows are used through pyarrow, all others through fsspec. Credentials come from each library's
usual chain (environment, files, the machine's or the service account's identity), never from settings.
"""

from __future__ import annotations

import os
from functools import lru_cache
from urllib.parse import parse_qsl

import pyarrow.fs as pafs

ARROW_SCHEMES = frozenset({"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"})
"""What pyarrow opens by itself. Azure needs the account in the URL: `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/`."""


def locate(url: str) -> tuple[pafs.FileSystem, str]:
    """File system of a local path or URL, and the path in it.

    A query holds options of the store, e.g. `s3://bucket/folder?region=eu-west-1&endpoint_override=http://HOST:PORT`.
    The path is taken as it stands: `%20` is no blank, since names that a store lists are not encoded.

    Raises:
        OSError: no such kind of store, a library it needs is missing, or it cannot be reached.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    address, mark, query = rest.partition("?")
    place, _, path = address.partition("/")
    filesystem, root = _open_store(scheme, f"{scheme}://{place}/", mark + query)
    return filesystem, f"{root.rstrip('/')}/{path}".rstrip("/") or "/"


@lru_cache(maxsize=64)
def _open_store(scheme: str, url: str, query: str) -> tuple[pafs.FileSystem, str]:
    """One client for each bucket and process: a new one looks up the region and fetches credentials again."""
    try:
        if scheme in ARROW_SCHEMES:
            return pafs.FileSystem.from_uri(url + query)
        import fsspec.core  # here: local runs do without it

        filesystem, root = fsspec.core.url_to_fs(url, **dict(parse_qsl(query[1:])))
    except (ImportError, ValueError) as error:
        raise OSError(f"{url} cannot be opened: {error}") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), root


def identity(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> str:
    """What changes when a file is replaced: `size-mtime_ns`, and with fsspec its own key, as it hands on no times."""
    if isinstance(filesystem, pafs.PyFileSystem) and isinstance(filesystem.handler, pafs.FSSpecHandler):
        return f"{info.size}-{filesystem.handler.fs.ukey(info.path)[:16]}"
    return f"{info.size}-{info.mtime_ns or 0}"
