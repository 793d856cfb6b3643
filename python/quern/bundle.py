"""A bundle as a Python package, for where packages are how things are shipped.

    python -m quern.bundle llama.qdb acme-llama --version 1.0 -o wheels
    pip install wheels/acme_llama-1.0-py3-none-any.whl

makes and installs a wheel with the file in it. From then on contexts read it behind their cache,
unless they, or QUERN_BASE, name other bundles. A program that is not Python finds it so:

    QUERN_BASE=$(python -m quern.bundle --list) quern doctor

The wheel is written with the standard library alone, and its bytes depend on nothing but the
bundle, name and version:

    quern_bundle_acme_llama/__init__.py            path = ".../bundle.qdb"
    quern_bundle_acme_llama/bundle.qdb
    acme_llama-1.0.dist-info/METADATA WHEEL RECORD
    acme_llama-1.0.dist-info/entry_points.txt      [quern.bundles] acme-llama = ...:path

It depends on no version of quern: which of its kernels serve is decided by their keys.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import os
import re
import sys
import zipfile
from typing import IO, Optional

from . import _bundles
from ._context import Context, Path
from ._errors import Error
from ._structs import VERSION

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can say
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# As installers write it (PEP 440): other spellings mean one of these.
_NUMBER = r"(0|[1-9][0-9]*)"
_VERSION = re.compile(rf"({_NUMBER}!)?{_NUMBER}(\.{_NUMBER})*((a|b|rc){_NUMBER})?"
                      rf"(\.post{_NUMBER})?(\.dev{_NUMBER})?(\+[a-z0-9]+(\.[a-z0-9]+)*)?")

_INIT = '''"""A bundle of kernels for quern."""

import os

path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bundle.qdb")
'''
_WHEEL = f"Wheel-Version: 1.0\nGenerator: quern {VERSION}\nRoot-Is-Purelib: true\n" \
    "Tag: py3-none-any\n"


class _Wheel:
    """An open wheel, and the RECORD of what has been put into it."""

    def __init__(self, file: IO[bytes], about: str) -> None:
        self._zip = zipfile.ZipFile(file, "w")
        self._about = about
        self._record: list[str] = []

    def add(self, name: str, source: IO[bytes]) -> None:
        entry = zipfile.ZipInfo(name, _EPOCH)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o100644 << 16
        digest, size = hashlib.sha256(), 0
        with self._zip.open(entry, "w", force_zip64=True) as stored:
            while part := source.read(1 << 20):
                stored.write(part)
                digest.update(part)
                size += len(part)
        code = base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
        self._record.append(f"{name},sha256={code},{size}\n")

    def add_text(self, name: str, text: str) -> None:
        self.add(name, io.BytesIO(text.encode()))

    def give_up(self) -> None:
        """Writes nothing more: a ZipFile that is not closed tries to when it is collected."""
        self._zip.fp = None

    def close(self) -> None:
        """Ends it with its RECORD, which has no hash of itself."""
        name = f"{self._about}/RECORD"
        self.add_text(name, "".join(self._record) + f"{name},,\n")
        self._zip.close()


def make_wheel(bundle: Path, name: str, version: str, folder: Path = ".") -> str:
    """Writes FOLDER/NAME-VERSION-py3-none-any.whl and returns its path.

    Error: the bundle is none that a context would take as a base, the name or the version is not
    one of a package, or the wheel exists.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Error(f"name={name}: must be a package's name: letters, digits, '.', '_' and '-' "
                    "between them")
    plain = re.sub(r"[-_.]+", "_", name).lower()
    if plain == "quern":
        raise Error(f"name={name}: must be another: this is the package that reads bundles")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise Error(f"version={version}: must be a package's version, as 1.0 or 2026.1.5")
    _require_bundle(bundle)
    path = os.path.join(folder, f"{plain}-{version}-py3-none-any.whl")
    if os.path.lexists(path):
        raise Error(f"output={path}: is there already; must be a new file")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(path, "xb") as made:
            try:
                _write(made, bundle, name, version, f"{plain}-{version}.dist-info",
                       f"quern_bundle_{plain}")
            except BaseException:
                os.unlink(path)
                raise
    except OSError as error:
        raise Error(f"output={path}: cannot be written: {error.strerror}", "IO") from error
    return path


def _require_bundle(bundle: Path) -> None:
    """Error unless a context takes it as a base."""
    try:
        Context("cpu", cache="", base=[bundle]).close()
    except Error as error:
        raise Error(re.sub("^base=", "bundle=", str(error)), error.status) from None


def _write(made: IO[bytes], bundle: Path, name: str, version: str, about: str,
           package: str) -> None:
    wheel = _Wheel(made, about)
    try:
        _fill(wheel, bundle, name, version, about, package)
        made.flush()
    except BaseException:
        wheel.give_up()
        raise


def _fill(wheel: _Wheel, bundle: Path, name: str, version: str, about: str, package: str) -> None:
    wheel.add_text(f"{package}/__init__.py", _INIT)
    with open(bundle, "rb") as source:
        wheel.add(f"{package}/bundle.qdb", source)
    wheel.add_text(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\n"
                   f"Version: {version}\nSummary: A bundle of kernels for quern\n")
    wheel.add_text(f"{about}/WHEEL", _WHEEL)
    wheel.add_text(f"{about}/entry_points.txt",
                   f"[{_bundles.GROUP}]\n{name} = {package}:path\n")
    wheel.close()


def main(words: Optional[list[str]] = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m quern.bundle", description="Makes a wheel of a bundle of kernels.")
    parser.add_argument("bundle", nargs="?", help="file that quern prebuild or cache export wrote")
    parser.add_argument("name", nargs="?", help="of the package")
    parser.add_argument("--version", help="of the package")
    parser.add_argument("-o", "--output", metavar="DIR", default=".", help="where the wheel goes")
    parser.add_argument("--list", action="store_true",
                        help="print the installed bundles, as QUERN_BASE takes them")
    given = parser.parse_args(words)
    try:
        if given.list:
            found = _bundles.installed(lambda text: print(f"quern: {text}", file=sys.stderr))
            print(os.fsdecode(b":".join(found)))
            return 0
        for need in ("bundle", "name", "version"):
            if getattr(given, need) is None:
                parser.error(f"{need}: must be given: BUNDLE NAME --version VERSION")
        print(make_wheel(given.bundle, given.name, given.version, given.output))
        return 0
    except Error as error:
        print(f"quern: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
