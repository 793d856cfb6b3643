#!/usr/bin/env python3
"""The commands that the documents show for bundles, sweeps and reports run, in their order.

    document ── sections ── indented lines and RUN lines of Dockerfiles ── COMMANDS ──> sh
                                                                          changes

A document's commands run in one temporary folder, on the CPU, with the file that they read from
elsewhere put there: a small model as every config.json. What would need a GPU or a long time is
changed as the table COMMANDS says, and nothing is left out: a command that the table does not have
is a failure, as is one that does not exit with 0, or complains.

Needs python3. QUERN_BIN is the binary (else the one in QUERN_BUILD, else build/quern). Everything is
written below a private temporary directory, also HOME and the cache.
"""
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

from cli_test import BINARY
from prebuild_test import MIXTURE, REPLAY

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = {**MIXTURE, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 512}
SMALL = "--max-tokens 1 --max-batch 1 --max-seq 16"

# Parts of documents: None is the whole; else each section must be there and show commands.
DOCUMENTS = {
    "README.md": ["From a config.json to a service that never compiles"],
    "docs/SHIPPING.md": None,
    "docs/CLI.md": ["Bundles and bases", "prebuild", "sweep", "report"],
    "python/README.md": ["Bundles"],
}
# What a document's reader has before its first command.
BEFORE = {
    "docs/CLI.md": "quern build gemm m=1 n=8 k=8 --device cpu && "
                   "quern build gemm m=1 n=8 k=8 --device cpu --cache tuned.db",
    "python/README.md": "quern build gemm m=1 n=8 k=8 --device cpu --cache llama.qdb",
}

# What stands for a word of the documents.
HERE = (
    (r"--target \S+", "--target {target}"),
    (r" --device-profile \S+", ""),  # of a GPU: the target is this CPU's
)
LITTLE = ((r" --max-(tokens|batch|seq) \S+", ""), (r"$", f" {SMALL}"))
ON_CPU = ((r"$", " --device cpu"),)
BRIEF = ((r" --budget \S+", " --budget 60"), (r"$", " --max-configs 1"))
# The command, without the variables set before it, and its changes.
COMMANDS = (
    (r"quern prebuild .*--dry-run.*", (*HERE, *LITTLE)),
    (r"quern prebuild .*--plan.*", (*HERE, *ON_CPU)),
    (r"quern prebuild .*--model.*", (*HERE, *LITTLE, *ON_CPU)),
    (r"quern sweep .*--model.*", (*BRIEF, *LITTLE, *ON_CPU)),
    (r"quern sweep .*--grid.*", (*BRIEF, *ON_CPU, (r"\b(256|4096)\b", "64"))),
    (r"quern sweep .*--from-misses.*", (*BRIEF, *ON_CPU)),
    (r"quern sweep .*--standard.*", (*BRIEF, *ON_CPU, ("--standard", "--family copy --grid n=64"))),
    (r"quern report FILE .*", (*ON_CPU, ("FILE", "$QUERN_CACHE"))),
    (r"quern report .*", ON_CPU),
    (r"quern cache (export|import) .*", (*HERE, *ON_CPU)),
    (r"quern cache verify", ON_CPU),
    (r"quern doctor", ON_CPU),
    (r"python3 -c .*", ()),
    (r"\./replay calls\.txt", ((r"$", " cpu"),)),
    (r"python3? -m quern\.bundle \S+ .*", ()),
    (r"pip install (\S+\.whl)", ((r"pip install (\S+)", r"unzip \1"),)),
)


def sections_of(text):
    """[(heading, line number, line)] of what is not fenced, and of RUN lines that are."""
    heading, fence, found = "", None, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fence = None if fence is not None else line[3:]
        elif fence is None and line.startswith("#"):
            heading = line.lstrip("# ")
        elif fence is None and line.startswith("    "):
            found.append((heading, number, line.strip()))
        elif fence == "dockerfile":
            found.append((heading, number, line))
    return found


def commands_of(lines):
    """(heading, line number, command): continued lines are joined, a RUN is what it runs."""
    begun = None
    for heading, number, line in lines:
        if begun:
            line, begun = f"{begun} {line.strip()}", None
        if line.endswith("\\"):
            begun = line[:-1].rstrip()
            continue
        line = re.sub("^RUN ", "", line)
        bare = re.sub(r"^((\w+=(\$\(.*\)|\S*)) )*", "", line)
        if re.match(r"(build/)?quern |python3? -(m quern|c )|pip |\./replay ", bare):
            yield heading, number, line


class DocumentsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="quern_docs_")
        self.addCleanup(shutil.rmtree, self.folder)
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith("QUERN_")}
        if "QUERN_CLANG" in os.environ:
            self.environment["QUERN_CLANG"] = os.environ["QUERN_CLANG"]
        os.makedirs(self.path("bin"))
        os.makedirs(self.path("build"))
        for link in ("bin/quern", "build/quern"):
            os.symlink(BINARY, self.path(link))
        os.symlink(REPLAY, self.path("replay"))
        for name in ("python", "python3"):
            self.script(name, f'exec {shlex.quote(sys.executable)} "$@"')
        self.script("unzip", 'exec python3 -m zipfile -e "$1" site')  # installs a pure wheel
        self.environment.update(
            HOME=self.folder, LC_ALL="C", QUERN_CACHE=self.path("cache.db"),
            QUERN_LIBRARY=os.path.join(os.path.dirname(BINARY), "libquern.so.0"),
            PYTHONPATH=f"{ROOT}/python:{self.path('site')}", PYTHONDONTWRITEBYTECODE="1",
            PATH=f"{self.path('bin')}:{os.environ['PATH']}")
        doctor = self.run_shell("quern doctor --json --device cpu").stdout
        self.target = json.loads(doctor)["cpu"]["target"]

    def path(self, name):
        return os.path.join(self.folder, name)

    def script(self, name, line):
        path = self.path(f"bin/{name}")
        with open(path, "w") as stream:
            stream.write(f"#!/bin/sh\n{line}\n")
        os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)

    def run_shell(self, command):
        return subprocess.run(["sh", "-c", command], cwd=self.folder, env=self.environment,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)

    def provide(self, command):
        """The files that a command of a document takes from elsewhere."""
        for path in re.findall(r"--model (\S+)", command):
            self.assertTrue(path.endswith(".json") and not path.startswith("/"), path)
            place = self.path(path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "w") as stream:
                json.dump(MODEL, stream)

    def changed(self, where, command):
        """The command as it can run here. A failure: the table does not have it."""
        variables, bare = re.fullmatch(r"((?:\w+=(?:\$\(.*\)|\S*) )*)(.*)", command).groups()
        first, *rest = re.split(" && ", bare)
        plain = re.sub("^build/", "", first)
        for form, changes in COMMANDS:
            if re.fullmatch(form, plain):
                for old, new in changes:
                    first = re.sub(old, new.replace("{target}", self.target), first, count=0)
                return variables + " && ".join([first, *rest])
        self.fail(f"{where}: no rule says how to run: {command}")

    def follow(self, document):
        with open(os.path.join(ROOT, document)) as stream:
            commands = list(commands_of(sections_of(stream.read())))
        wanted = DOCUMENTS[document]
        shown = {heading for heading, _, _ in commands}
        self.assertTrue(shown)
        self.assertEqual(set(wanted or shown) - shown, set(), "sections that show no command")
        self.assertEqual(self.run_shell(BEFORE.get(document, "true")).returncode, 0)
        for heading, number, command in commands:
            if wanted and heading not in wanted:
                continue
            where = f"{document}:{number}"
            with self.subTest(where):
                self.provide(command)
                done = self.run_shell(self.changed(where, command))
                said = f"{where}: {command}\n{done.stdout}{done.stderr}"
                self.assertEqual(done.returncode, 0, said)
                self.assertNotIn("quern: ", done.stderr, said)

    def test_the_readme(self):
        self.follow("README.md")

    def test_shipping(self):
        self.follow("docs/SHIPPING.md")
        self.assertTrue(os.path.getsize(self.path("report.html")))
        done = self.run_shell("QUERN_BASE=$(python3 -m quern.bundle --list) quern doctor --json")
        base = json.loads(done.stdout)["cache"]["base_1"]
        self.assertTrue(base.startswith(self.path("site/")), base)
        self.assertNotIn("no kernel for this device", base)

    def test_the_command_line(self):
        self.follow("docs/CLI.md")

    def test_the_python_package(self):
        self.follow("python/README.md")

    def test_a_command_that_no_rule_knows_is_found_and_refused(self):
        text = ("# A\n\n    QUERN_MODE=sealed quern frobnicate x \\\n        --y\n    a quern x\n"
                "\n```sh\nquern not\n```\n```dockerfile\nRUN quern a\nCOPY quern b\n```\n")
        self.assertEqual(list(commands_of(sections_of(text))),
                         [("A", 4, "QUERN_MODE=sealed quern frobnicate x --y"),
                          ("A", 11, "quern a")])
        with self.assertRaisesRegex(AssertionError, "no rule says how to run: quern frobnicate"):
            self.changed("A:4", "quern frobnicate x --y")


if __name__ == "__main__":
    unittest.main()
