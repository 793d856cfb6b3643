"""Finds libquern.so.0, loads it once, and declares the functions that the package calls.

    $QUERN_LIBRARY, if set: that file and no other
    quern/libquern.so.0              in a wheel
    ../../build/libquern.so.0        in a source tree, after make
    libquern.so.0                    the loader's path: installed by make install

Nothing is loaded at import: the first use does it. The library's version must be the one that
_structs was written for.
"""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from typing import Any, Optional

from . import _structs
from ._errors import Error

NAME = "libquern.so.0"

_lock = threading.Lock()
_loaded: Optional[ctypes.CDLL] = None
_loaded_from = ""

# Function: (result, arguments). An int result is a status.
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "quern_version": (c_char_p, []),
    "quern_status_name": (c_char_p, [c_int]),
    "quern_context_create": (c_int, [POINTER(_structs.Options), POINTER(c_void_p)]),
    "quern_context_destroy": (None, [c_void_p]),
    "quern_errmsg": (c_char_p, [c_void_p]),
    "quern_family_count": (c_int, [c_void_p]),
    "quern_family_at": (c_void_p, [c_void_p, c_int]),
    "quern_family_find": (c_void_p, [c_void_p, c_char_p]),
    "quern_family_describe": (None, [c_void_p, POINTER(_structs.FamilyDescription)]),
    "quern_plugin_load": (c_int, [c_void_p, c_char_p]),
    "quern_spec_init": (c_int, [c_void_p, c_char_p, POINTER(_structs.Spec)]),
    "quern_spec_set": (c_int, [c_void_p, POINTER(_structs.Spec), c_char_p, c_char_p]),
    "quern_spec_validate": (c_int, [c_void_p, POINTER(_structs.Spec)]),
    "quern_spec_text": (c_int, [POINTER(_structs.Spec), c_char_p, c_size_t]),
    "quern_spec_shape": (c_int, [c_void_p, POINTER(_structs.Spec), c_int,
                                 POINTER(_structs.Shape)]),
    "quern_prepare": (c_int, [c_void_p, POINTER(_structs.Request), POINTER(c_void_p)]),
    "quern_kernel_report": (None, [c_void_p, POINTER(_structs.Report)]),
    "quern_kernel_workspace": (c_size_t, [c_void_p]),
    "quern_tune": (c_int, [c_void_p, POINTER(_structs.Request), POINTER(_structs.TuneOptions),
                           POINTER(_structs.TuneResultStruct)]),
    "quern_doctor": (c_int, [c_void_p, _structs.FactCallback, c_void_p]),
    "quern_cache_stats": (c_int, [c_void_p, POINTER(_structs.CacheStats)]),
}
# Called with arguments made beforehand (byref() and None only), so without argument types: that
# is what makes a launch cheap.
_BARE = ("quern_run", "quern_launch")


def _places() -> list[str]:
    """Where the library may be, the first that exists counts; the last is the loader's to find."""
    named = os.environ.get("QUERN_LIBRARY")
    if named:  # a name without a folder may be the loader's
        return [os.path.abspath(named) if os.sep in named or os.path.isfile(named) else named]
    here = os.path.dirname(os.path.abspath(__file__))
    build = os.path.normpath(os.path.join(here, "..", "..", "build"))
    return [os.path.join(here, NAME), os.path.join(build, NAME), NAME]


def _open() -> tuple[ctypes.CDLL, str]:
    """The first library of _places() that loads, and the place."""
    looked = []
    for place in _places():
        is_file = os.path.isfile(place)
        if os.path.isabs(place) and not is_file:
            looked.append(f"{place} (no such file)")
            continue
        try:
            return ctypes.CDLL(place), place
        except OSError as error:
            if is_file:
                raise Error(f"{NAME}: {place} cannot be loaded: {error}", "LOAD") from error
            looked.append(f"{place} (not on the loader's path)")
    named = "QUERN_LIBRARY names " if os.environ.get("QUERN_LIBRARY") else "looked for at "
    raise Error(f"{NAME}: not found: {named}{', '.join(looked)}; build it with make, or set "
                "QUERN_LIBRARY to its file", "LOAD")


def _declare(library: ctypes.CDLL, place: str) -> None:
    """Result and argument types; the version first, since an older library may lack a function."""
    try:
        library.quern_version.restype = c_char_p
        version = library.quern_version().decode()
    except AttributeError as error:
        raise Error(f"{NAME}: {place} is no quern library: {error}", "LOAD") from error
    if version != _structs.VERSION:
        raise Error(f"{NAME}: {place} is version {version}: must be {_structs.VERSION}, which this "
                    "package was made for", "LOAD")
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for name in _BARE:
        getattr(library, name).restype = c_int


def load() -> ctypes.CDLL:
    """The library, loaded at the first call. Any thread. Error (LOAD) says where it was sought."""
    global _loaded, _loaded_from
    if _loaded is not None:
        return _loaded
    with _lock:
        if _loaded is None:
            library, place = _open()
            _declare(library, place)
            _loaded_from = _mapped_file(library) or place
            _loaded = library
    return _loaded


def library_path() -> str:
    """The file of the library in use; loads it if need be."""
    load()
    return _loaded_from


class _DlInfo(ctypes.Structure):
    _fields_ = [("file", c_char_p), ("base", c_void_p), ("symbol", c_char_p),
                ("address", c_void_p)]


def _mapped_file(library: ctypes.CDLL) -> Optional[str]:
    """The path of the file that a function of the library lies in, as the loader names it."""
    info = _DlInfo()
    address = ctypes.cast(library.quern_version, c_void_p)
    if not ctypes.CDLL(None).dladdr(address, ctypes.byref(info)) or not info.file:
        return None
    return os.path.realpath(os.fsdecode(info.file))


def status_name(status: int) -> str:
    """"INVALID" for -1."""
    name: bytes = load().quern_status_name(status)
    return name.decode()
