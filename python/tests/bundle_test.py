#!/usr/bin/env python3
"""Bundles: as an argument, by QUERN_BASE, as installed packages; and how the packages are made.

Wheels are unpacked here, which is what installing a pure one comes to. pip does it in
install_test.sh.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import pathlib
import shutil
import sqlite3
import stat
import subprocess
import sys
import unittest
import unittest.mock
import zipfile
from typing import Any

from common import FOLDER, PACKAGE, Case, main, np, quern, random, run_python

from quern.bundle import make_wheel

SITE, OTHER = FOLDER / "site", FOLDER / "other.qdb"
BUNDLE = FOLDER / "made.qdb"
A, B = random(5, 9), random(7, 9)
# Says what it compiled and which bundles it had; what is logged goes to stderr.
SEALED = """
import numpy as np, quern
with quern.Context("cpu", cache="", mode="sealed") as context:
    artifact = context.prepare("gemm", np.ones((5, 9), "f"), np.ones((7, 9), "f")).artifact
    bases = [text.partition(": ")[0] for name, text in context.doctor()["cache"].items()
             if name.startswith("base_")]
    print(artifact, context.stats().compiles, *bases)
"""


def setUpModule() -> None:
    with quern.Context("cpu", cache=BUNDLE) as context:
        context.gemm(A, B)
    with quern.Context("cpu", cache=OTHER) as context:
        context.copy(A[0])
    install(make_wheel(BUNDLE, "Acme.llama--8B", "1.0", FOLDER / "wheels"))


def install(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(SITE)


def run_with_site(code: str, *folders: Any, **environment: str
                  ) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(map(str, (PACKAGE, *(folders or (SITE,)))))
    return run_python(code, PYTHONPATH=path, **environment)


class BaseTest(Case):
    def bases(self, context: quern.Context) -> list[str]:
        return [text.partition(": ")[0] for name, text in context.doctor()["cache"].items()
                if name.startswith("base_")]

    def test_a_sealed_context_without_a_cache_runs_from_a_base(self):
        for base in (BUNDLE, str(BUNDLE), [OTHER, BUNDLE], (BUNDLE,), iter([BUNDLE, str(OTHER)])):
            with quern.Context("cpu", cache="", mode="sealed", base=base) as context:
                self.assert_close(context.gemm(A, B), A.astype(float) @ B.T, 3e-6)
                self.assertEqual(context.prepare("gemm", A, B).artifact, "disk")
                self.assertEqual(context.stats().compiles, 0)

    def test_bases_are_asked_in_the_order_given(self):
        for order in ([BUNDLE, OTHER], [OTHER, BUNDLE]):
            with quern.Context("cpu", cache="", base=order) as context:
                self.assertEqual(self.bases(context), [str(path) for path in order])

    def test_the_variable_serves_as_it_does_in_c_and_an_argument_comes_before_it(self):
        with unittest.mock.patch.dict(os.environ, QUERN_BASE=f"{OTHER}:{BUNDLE}"):
            for base, wanted in ((None, [OTHER, BUNDLE]), ([BUNDLE], [BUNDLE]), ("", []), ([], [])):
                with quern.Context("cpu", cache="", base=base) as context:
                    self.assertEqual(self.bases(context), [str(path) for path in wanted])

    def test_what_is_no_bundle_is_refused_by_its_name(self):
        text = FOLDER / "text.qdb"
        text.write_text("text")
        for said, base in {
            "base=5: must be a path or a list of paths": 5,
            "base=None: must be the path of a bundle": [None],
            "base='': must be the path of a bundle": [""],
            "base='a:b': must be the path of a bundle, without a ':'": "a:b",
            "base='a\\x00b': must not contain NUL": "a\0b",
            "base=6: must be text or a path": [6],
            "base=/nowhere/a.qdb: ": "/nowhere/a.qdb",
            f"base={text}: is not a quern cache": [BUNDLE, text],
        }.items():
            self.refused(said, quern.Context, "cpu", cache="", base=base)
        with unittest.mock.patch.dict(os.environ, QUERN_BASE="/nowhere/a.qdb"):
            error = self.refused("base=/nowhere/a.qdb: ", quern.Context, "cpu", cache="")
        self.assertEqual(error.status, "STORE")

    def test_a_bundle_for_other_devices_is_only_of_no_use(self):
        with quern.Context("cpu", cache="", base=OTHER) as context:
            self.assertEqual(context.prepare("gemm", A, B).artifact, "compiled")


class InstalledTest(Case):
    """Programs that name no bundle, in processes whose path has packages with bundles."""

    def test_an_installed_bundle_serves_a_sealed_program(self):
        done = run_with_site(SEALED)
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.stdout.split(),
                         ["disk", "0", f"{SITE}/quern_bundle_acme_llama_8b/bundle.qdb"])

    def test_named_bundles_stand_in_its_place(self):
        done = run_with_site(SEALED, QUERN_BASE=f"{OTHER}:{BUNDLE}")
        self.assertEqual(done.stdout.split(), ["disk", "0", str(OTHER), str(BUNDLE)], done.stderr)

    def test_an_empty_variable_turns_installed_bundles_off(self):
        done = run_with_site(SEALED.replace('mode="sealed"', 'mode="normal"'), QUERN_BASE="")
        self.assertEqual(done.stdout.split(), ["compiled", "1"], done.stderr)

    def test_one_that_cannot_be_used_is_passed_over_with_a_warning(self):
        path = SITE / "quern_bundle_acme_llama_8b" / "bundle.qdb"
        broken = FOLDER / "broken"
        packages = {"schema": 'path = __file__.replace("__init__.py", "bundle.qdb")',
                    "mode": 'path = __file__.replace("__init__.py", "bundle.qdb")',
                    "gone": 'path = "/nowhere/bundle.qdb"', "number": "path = 5",
                    "nothing": "", "raising": "raise OSError('out of luck')"}
        for name, code in packages.items():
            (broken / name).mkdir(parents=True)
            (broken / name / "__init__.py").write_text(code)
            about = broken / f"{name}-1.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
            (about / "entry_points.txt").write_text(f"[quern.bundles]\n{name} = {name}:path\n")
        for name in ("schema", "mode"):
            shutil.copy(path, broken / name / "bundle.qdb")
        (broken / "mode" / "bundle.qdb").chmod(0o666)
        connection = sqlite3.connect(broken / "schema" / "bundle.qdb")
        connection.execute("PRAGMA user_version = 999")
        connection.close()
        done = run_with_site(SEALED, broken, SITE)
        self.assertEqual(done.stdout.split(), ["disk", "0", str(path)], done.stderr)
        lines = done.stderr.splitlines()
        self.assertEqual(len(lines), len(packages), done.stderr)
        self.assertEqual(sum(line.endswith("this installed bundle is passed over")
                             for line in lines), 3, done.stderr)
        for words in ("schema=999", "mode=0666", "/nowhere/bundle.qdb", "number is passed over",
                      "nothing is passed over", "raising is passed over: out of luck"):
            self.assertEqual(sum(words in line for line in lines), 1, (words, done.stderr))
        done = run_with_site(SEALED, broken, SITE, QUERN_LOG="off")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        named = SEALED.replace('cache=""', f'cache="", base={str(broken / "schema/bundle.qdb")!r}')
        self.assertIn("schema=999", run_with_site(named, broken, SITE).stderr)

    def test_importing_quern_looks_for_none(self):
        done = run_with_site("import sys; before = set(sys.modules); import quern\n"
                             "print(*(set(sys.modules) - before))")
        self.assertNotIn("quern_bundle", done.stdout)
        self.assertNotIn("importlib.metadata", done.stdout.split())

    def test_they_can_be_listed_for_programs_that_are_not_python(self):
        done = subprocess.run(
            [sys.executable, "-m", "quern.bundle", "--list"], capture_output=True, text=True,
            check=True, env={**os.environ, "PYTHONPATH": f"{PACKAGE}:{SITE}", "QUERN_BASE": ""})
        self.assertEqual(done.stdout, f"{SITE}/quern_bundle_acme_llama_8b/bundle.qdb\n")


class WheelTest(Case):
    def test_its_record_holds_and_files_may_be_written_by_their_owner_only(self):
        wheel = FOLDER / "wheels" / "acme_llama_8b-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel) as archive:
            self.assertIsNone(archive.testzip())
            about = "acme_llama_8b-1.0.dist-info"
            rows = {name: (code, size) for name, code, size in
                    csv.reader(io.StringIO(archive.read(f"{about}/RECORD").decode()))}
            self.assertEqual(set(rows), set(archive.namelist()))
            self.assertEqual(rows.pop(f"{about}/RECORD"), ("", ""))
            for name, (code, size) in rows.items():
                data = archive.read(name)
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
                self.assertEqual((code, size), (f"sha256={digest.rstrip('=')}", str(len(data))))
            for entry in archive.infolist():
                self.assertEqual(entry.external_attr >> 16, stat.S_IFREG | 0o644)
            self.assertEqual(archive.read("quern_bundle_acme_llama_8b/bundle.qdb"),
                             BUNDLE.read_bytes())
            self.assertIn("\nName: Acme.llama--8B\nVersion: 1.0\n",
                          archive.read(f"{about}/METADATA").decode())

    def test_the_same_bundle_gives_the_same_bytes(self):
        one, two = (pathlib.Path(make_wheel(BUNDLE, "same", "1", FOLDER / name)).read_bytes()
                    for name in ("one", "two"))
        self.assertEqual(one, two)

    def test_what_cannot_be_packed_is_refused_and_leaves_nothing(self):
        empty, folder = FOLDER / "empty.qdb", FOLDER / "refused"
        empty.write_bytes(b"")
        for said, arguments in {
            "name=-a: must be a package's name": (BUNDLE, "-a", "1"),
            "name=a/b: must be a package's name": (BUNDLE, "a/b", "1"),
            "name=: must be a package's name": (BUNDLE, "", "1"),
            "name=Quern: must be another": (BUNDLE, "Quern", "1"),
            "version=1.02: must be a package's version": (BUNDLE, "a", "1.02"),
            "version=v1: must be a package's version": (BUNDLE, "a", "v1"),
            f"bundle={empty}: is not there, or has no bytes": (empty, "a", "1"),
            "bundle=/nowhere/a.qdb: ": ("/nowhere/a.qdb", "a", "1"),
        }.items():
            self.refused(said, make_wheel, *arguments, folder)
        self.assertFalse(folder.exists())

    def test_a_full_disk_is_one_line_and_leaves_nothing(self):
        folder = FOLDER / "full"
        done = run_python(f"""
import resource, sys
from quern import bundle
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(bundle.main([{str(BUNDLE)!r}, "full", "--version", "1", "-o", {str(folder)!r}]))
""")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, r"\Aquern: output=.*: cannot be written: .*\n\Z")
        self.assertEqual(list(folder.iterdir()), [])

    def test_a_wheel_that_is_there_is_left_as_it_is(self):
        wheel = make_wheel(BUNDLE, "twice", "1", FOLDER / "twice")
        before = os.stat(wheel)
        self.refused(f"output={wheel}: is there already", make_wheel, BUNDLE, "twice", "1",
                     FOLDER / "twice")
        self.assertEqual(os.stat(wheel), before)

    def test_the_command_makes_one_and_its_errors_are_one_line(self):
        command = [sys.executable, "-m", "quern.bundle"]
        settings = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        for words, code, said in (
            ([str(BUNDLE), "cli", "--version", "2.5", "-o", "cli"], 0, ""),
            ([str(BUNDLE), "cli", "--version", "2.5", "-o", "cli"], 1, "is there already"),
            ([str(BUNDLE), "cli", "--version", "x"], 1, "version=x: must be"),
            ([str(BUNDLE), "cli"], 2, "version: must be given"),
        ):
            done = subprocess.run([*command, *words], cwd=FOLDER, env=settings, text=True,
                                  capture_output=True, check=False)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(said, done.stderr)
            if not code:
                self.assertEqual(done.stdout, "cli/cli-2.5-py3-none-any.whl\n")


if __name__ == "__main__":
    main()
