"""What the suites of the package share: the package of this tree, a library, a cache, arrays.

The library is $QUERN_BUILD/libquern.so.0 where make's suites run, else what QUERN_LIBRARY or the
package's own search finds. The cache is private to the process unless QUERN_CACHE names one.
Random data is fresh on every run; QUERN_SEED repeats one, which every failure prints.
"""

from __future__ import annotations

import atexit
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "python"
sys.path.insert(0, str(PACKAGE))
sys.dont_write_bytecode = True

BUILD = os.environ.get("QUERN_BUILD")
if BUILD:
    os.environ["QUERN_LIBRARY"] = str(pathlib.Path(BUILD).resolve() / "libquern.so.0")
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="quern_python_"))
atexit.register(lambda owner=os.getpid(): owner == os.getpid() and shutil.rmtree(FOLDER))
os.environ.setdefault("QUERN_CACHE", str(FOLDER / "quern.db"))
for name in ("QUERN_MODE", "QUERN_LOG", "QUERN_TEMPLATES", "QUERN_CHECK", "QUERN_BASE"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402  (after the path and the cache)

import quern  # noqa: E402

SEED = int(os.environ.get("QUERN_SEED", 0)) or int.from_bytes(os.urandom(4), "little")
RANDOM = np.random.default_rng(SEED)


def random(*shape: int) -> Any:
    """Fresh normal numbers, f32."""
    return RANDOM.standard_normal(shape, dtype=np.float32)


def to_bf16(values: Any) -> Any:
    """The bits of f32 values rounded to nearest even, as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def poisoned(*shape: int, dtype: Any = np.float32) -> Any:
    """An output as nobody left it: NaN, or of integers all ones (NaN as bf16)."""
    dtype = np.dtype(dtype)
    return np.full(shape, np.nan if dtype.kind == "f" else np.iinfo(dtype).max, dtype)


def run_python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A new process with the package on its path."""
    settings = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1",
                **environment}
    return subprocess.run([sys.executable, "-c", code], env=settings, text=True, timeout=120,
                          capture_output=True, check=False)


class Case(unittest.TestCase):
    """Says the seed when a case fails."""

    def run(self, result: Any = None) -> Any:
        before = len(result.failures) + len(result.errors) if result else 0
        super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            print(f"\nQUERN_SEED={SEED}", file=sys.stderr)
        return result

    def assert_close(self, got: Any, wanted: Any, tolerance: float) -> None:
        """||got - wanted|| <= tolerance ||wanted||, and no element is NaN."""
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        self.assertEqual(got.shape, wanted.shape)
        norm = np.linalg.norm(wanted) or 1.0
        self.assertLessEqual(np.linalg.norm(got - wanted) / norm, tolerance)

    def refused(self, text: str, function: Any, *arguments: Any, **named: Any) -> quern.Error:
        """The call raises quern.Error with `text` in its one line."""
        with self.assertRaises(quern.Error) as caught:
            function(*arguments, **named)
        self.assertIn(text, str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))
        return caught.exception


def main() -> None:
    unittest.main()
