"""Bundles, the files that a context reads behind its cache: which ones, in what order.

    Context(base=...)             these
    else $QUERN_BASE              these
    else installed packages       each entry point of the group `quern.bundles`, in the order of
                                  their names

An empty base, or an empty QUERN_BASE, is none. An entry point names the path of a file in its
package; python -m quern.bundle makes such packages (bundle.py):

    [quern.bundles]
    acme-llama = quern_bundle_acme_llama:path

A bundle that was named must be as the library wants it. One that is merely installed must not
stop a program that knows nothing of it: it is passed over with a warning.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, Callable, Iterable, Optional

from ._errors import Error, encoded

GROUP = "quern.bundles"
Warn = Callable[[str], None]


def named(base: Any) -> Optional[list[bytes]]:
    """The paths of the argument `base`; None of None. Error: it is no path, and no list of such."""
    if base is None:
        return None
    if isinstance(base, (str, bytes, os.PathLike)):
        return [_path(base)] if os.fspath(base) else []
    try:
        return [_path(path) for path in base]
    except TypeError:
        raise Error(f"base={base!r}: must be a path or a list of paths") from None


def _path(path: Any) -> bytes:
    raw = encoded("base", "" if path is None else path) or b""
    if not raw or b":" in raw:
        raise Error(f"base={path!r}: must be the path of a bundle, without a ':', which stands "
                    "between paths")
    return raw


def installed(warn: Warn) -> list[bytes]:
    """Paths of the installed bundles, each once."""
    paths: dict[bytes, None] = {}
    try:
        points = _entry_points(tuple(sys.path))
    except Exception as error:  # some package's metadata, of which quern knows nothing
        warn(f"base: installed bundles cannot be listed: {error}")
        points = ()
    for point in points:
        try:
            paths[_path(point.load())] = None
        except Exception as error:  # whatever a package does when it is imported
            warn(f"base: the installed bundle {point.name} is passed over: {error}")
    return list(paths)


@functools.lru_cache(maxsize=1)
def _entry_points(_: tuple[str, ...]) -> Iterable[Any]:
    """Those of the group, by name. The search path is the argument that they depend on."""
    from importlib import metadata
    if sys.version_info >= (3, 10):
        points: Iterable[Any] = metadata.entry_points(group=GROUP)
    else:
        points = metadata.entry_points().get(GROUP, ())
    return tuple(sorted(points, key=lambda point: (point.name, point.value)))


def refused(error: Error, paths: list[bytes]) -> Optional[bytes]:
    """The path of the list that the library's error is about."""
    for path in paths:
        if error.status == "STORE" and str(error).startswith(
                f"base={path.decode(errors='replace')}: "):
            return path
    return None
