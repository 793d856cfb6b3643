"""What pyproject.toml cannot say: the version, and the library in the wheel.

    ../include/quern.h                 QUERN_VERSION: the one place that says it
    $QUERN_BUILD, else ../build        libquern.so.0, copied into the package; libgomp.so.1 too if
                                       it lies there (make STATIC=1)

The wheel is py3-none-PLATFORM: it holds a binary that no Python's ABI matters to. Everything that
is made on the way goes to a temporary folder, so that the source tree stays as it was.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info
from setuptools.command.sdist import sdist

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

HERE = os.path.dirname(os.path.abspath(__file__))
# pip runs this file in python/, wherever it was called itself: a relative QUERN_BUILD is of there.
BUILD = os.path.abspath(os.environ.get("QUERN_BUILD") or os.path.join(HERE, "..", "build"))
LIBRARY = "libquern.so.0"
SCRATCH = tempfile.mkdtemp(prefix="quern_wheel_")
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


def version() -> str:
    with open(os.path.join(HERE, "..", "include", "quern.h"), encoding="utf-8") as header:
        found = re.search(r'^#define QUERN_VERSION "(.+)"$', header.read(), re.MULTILINE)
    if not found:
        raise SystemExit("include/quern.h: has no QUERN_VERSION")
    return found.group(1)


class BuildWithLibrary(build_py):
    """Copies the library and the licence beside the modules."""

    def run(self) -> None:
        library = os.path.join(BUILD, LIBRARY)
        if not os.path.isfile(library):
            raise SystemExit(f"{LIBRARY}: not in {BUILD}: run make first")
        super().run()
        package = os.path.join(self.build_lib, "quern")
        shutil.copy(library, package)
        shutil.copy(os.path.join(HERE, "..", "LICENSE"), package)
        companion = os.path.join(BUILD, "libgomp.so.1")
        if os.path.isfile(companion):
            shutil.copy(companion, package)


class EggInfoElsewhere(egg_info):
    """Writes quern.egg-info to the temporary folder."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.egg_base = SCRATCH


class PlatformWheel(bdist_wheel):
    """Tagged for the platform, and for any Python 3."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class NoSourceDistribution(sdist):
    """The sources are the whole project's, and its Makefile builds them."""

    def run(self) -> None:
        raise SystemExit("sdist: not offered: make a wheel in the source tree: pip wheel ./python")


class BinaryDistribution(Distribution):
    """Installed where binaries go."""

    def has_ext_modules(self) -> bool:
        return True


commands: dict[str, Any] = {"build_py": BuildWithLibrary, "egg_info": EggInfoElsewhere,
                              "bdist_wheel": PlatformWheel, "sdist": NoSourceDistribution}
# The licence is said here: how pyproject.toml says it changed between releases of setuptools.
setup(version=version(), license="Apache-2.0", cmdclass=commands, distclass=BinaryDistribution,
      options={"build": {"build_base": SCRATCH}})
