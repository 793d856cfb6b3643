#!/usr/bin/env python3
"""Processes that start cold on one empty cache compile once, and none waits for one that was killed.

The compiler is a script around the real one that appends a line to a file for each compilation; asking
it for its version is not one. The command is $QUERN_BIN, else the one in $QUERN_BUILD, else
build/quern."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

PROCESSES = 8
PATIENCE_S = 60

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUERN = os.environ.get("QUERN_BIN") or str(
    pathlib.Path(os.environ.get("QUERN_BUILD", ROOT / "build")) / "quern")

# {slow} exists: whoever makes the folder {claim} first says so in {started} and then hangs.
WRAPPER = """#!/bin/sh
case " $* " in *" --version "*) exec "{real}" "$@";; esac
echo $$ >> "{compiles}"
if [ -e "{slow}" ] && mkdir "{claim}" 2>> /dev/null; then
    echo $$ > "{started}.part"
    mv "{started}.part" "{started}"
    exec sleep 600
fi
exec "{real}" "$@"
"""


def is_alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, what):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not after {PATIENCE_S} s")
        time.sleep(0.02)


class ColdStart(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = pathlib.Path(scratch.name)
        self.cache = self.directory / "cache" / "quern.db"
        self.files = {name: self.directory / name
                      for name in ("compiles", "slow", "claim", "started")}
        real = shutil.which(os.environ.get("QUERN_CLANG", "clang-19")) or shutil.which("clang")
        self.assertIsNotNone(real, "no clang")
        (self.directory / "bin").mkdir()
        wrapper = self.directory / "bin" / "clang-19"
        wrapper.write_text(WRAPPER.format(real=real, **self.files), encoding="utf8")
        wrapper.chmod(0o755)
        self.environment = dict(os.environ, PATH=f"{wrapper.parent}:{os.environ['PATH']}")
        self.environment.pop("QUERN_CLANG", None)
        self.environment.pop("QUERN_CACHE", None)
        self.environment.pop("QUERN_MODE", None)
        self.seed = str(int.from_bytes(os.urandom(4), "little"))

    def start(self, number):
        command = [QUERN, "run", "copy", "n=100003", "dtype=bf16", "inplace=1", "alpha=0.75",
                   "--device", "cpu", "--cache", str(self.cache), "--seed", self.seed, "--check",
                   "--json", "--out", f"out={self.directory / f'{number}.npy'}"]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, cwd=self.directory)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()

    def finish(self, processes):
        """Every process' JSON; fails if one failed or did not end."""
        results = []
        for process in processes:
            out, err = process.communicate(timeout=PATIENCE_S)
            self.assertEqual(process.returncode, 0, f"seed {self.seed}: {err}")
            results.append(json.loads(out))
        return results

    def compile_count(self):
        path = self.files["compiles"]
        return len(path.read_text(encoding="utf8").split()) if path.exists() else 0

    def assert_same_output(self, numbers):
        outputs = {(self.directory / f"{number}.npy").read_bytes() for number in numbers}
        self.assertEqual(len(outputs), 1, f"seed {self.seed}: outputs differ")
        self.assertGreater(len(outputs.pop()), 2 * 100003)

    def test_eight_cold_processes_compile_once_and_give_one_output(self):
        self.assertFalse(self.cache.parent.exists())
        results = self.finish([self.start(number) for number in range(PROCESSES)])
        self.assertEqual(self.compile_count(), 1)
        origins = sorted(result["artifact"] for result in results)
        self.assertEqual(origins, ["compiled"] + ["disk"] * (PROCESSES - 1))
        self.assertTrue(all(result["check"]["ok"] for result in results))
        self.assert_same_output(range(PROCESSES))

    def test_a_later_process_compiles_nothing(self):
        self.finish([self.start(0)])
        results = self.finish([self.start(1)])
        self.assertEqual(results[0]["artifact"], "disk")
        self.assertEqual(self.compile_count(), 1)
        self.assert_same_output([0, 1])

    def test_a_process_killed_while_it_compiles_holds_nobody_up(self):
        self.files["slow"].touch()
        victim = self.start(0)
        wait_until(self.files["started"].exists, "the first compilation has started")
        others = [self.start(number) for number in range(1, PROCESSES)]
        time.sleep(0.5)
        self.assertTrue(all(process.poll() is None for process in others), "they did not wait")
        victim.send_signal(signal.SIGKILL)
        start = time.monotonic()
        results = self.finish(others)
        self.assertLess(time.monotonic() - start, 20, "they waited for more than its death")
        self.assertEqual(victim.wait(), -signal.SIGKILL)
        self.assertEqual(self.compile_count(), 2)
        self.assertEqual(sorted(result["artifact"] for result in results),
                         ["compiled"] + ["disk"] * (PROCESSES - 2))
        self.assert_same_output(range(1, PROCESSES))
        compiler = int(self.files["started"].read_text(encoding="utf8"))
        wait_until(lambda: not is_alive(compiler), "the victim's compiler has ended, too")


if __name__ == "__main__":
    unittest.main()
