"""What a process pays before and around its calls: first calls, tuning, warm calls, memory.

    start_child.py   a new process: a context, one call                   empty or warm cache
    call_child.py    a new process: dispatch, launch, from C and Python   one table of warm calls
          |
          v
    measure()  -->  {"rows": [...], "details": [...], ...}  -->  table()   "starts" of a run's JSON

What each kind of start does and finds in its cache (`folder` is a temporary one, removed after):

    untuned   cold: empty               warm: what the last cold one left    the heuristic's config
    tuned     cold: empty, tunes first  warm: what the last cold one left    the tuned config
    peer fixed, peer autotuned          likewise, in TRITON_CACHE_DIR, which holds Triton's results
                                        of autotuning, too; fixed is the config that it chose, where
                                        the peer can be given one

Every figure is the median over several processes, as many as SECONDS_A_KIND allows, at least one.
A start whose page cache is cold is made before the first that counts. A kind that fails leaves a
line in "failed" and its cells empty. Every output is checked, by the child. The family's adapter
says which shapes (STARTS), which peer (START_PEERS) and what is called when warm (CALLS).
"""
from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import clock_cpu, report
from harness.contest import Say, Unavailable
from harness.figures import mad, median
from harness.roof import shared_object

Job = dict[str, Any]  # what a child is asked for
Figures = dict[str, Any]  # what it says
Shape = dict[str, str]  # a line of a shape file

HERE = Path(__file__).resolve().parent
PROCESSES = {"cpu": 7, "cuda": 3}
SECONDS_A_KIND = 15.0
CHILD_LIMIT_S = 240.0
KEPT = ("QUERN_CLANG", "QUERN_NVRTC")  # of the QUERN_* that a user may have set


@dataclass
class Row:
    """One line of the table; None: not measured."""

    name: str
    unit: str
    quern: float | None = None
    quern_mad: float | None = None
    peer: float | None = None
    peer_mad: float | None = None


@dataclass
class Start:
    """The processes of one kind, all with the same job."""

    name: str  # "quern untuned cold"
    job: Job
    is_cold: bool
    figures: list[Figures] = field(default_factory=list)

    def figure(self, name: str, scale: float = 1.0) -> tuple[float | None, float | None]:
        """Median and MAD over the processes; None where there are none."""
        values = [x[name] * scale for x in self.figures]
        return (median(values), mad(values)) if values else (None, None)

    def detail(self) -> dict[str, Any]:
        """For the JSON: what was asked for, every process's figures."""
        return {"name": self.name, "shape": self.job["shape"], "processes": self.figures}


# ---- Processes --------------------------------------------------------------------------------


class ChildFailed(Exception):
    """A child's last line, or that it took too long."""


class Children:
    """Starts processes in a temporary folder of caches, with an environment of their own."""

    def __init__(self, device: str, threads: int, folder: Path) -> None:
        import quern

        self.device = device
        self.folder = folder
        self.library = Path(str(quern.library_path())).resolve()
        kept = {key: value for key, value in os.environ.items()
                if not key.startswith("QUERN_") or key in KEPT}
        paths = [str(HERE.parent), str(Path(quern.__file__).resolve().parents[1])]
        self.environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join(paths + [x for x in [kept.get("PYTHONPATH")] if x]),
            "QUERN_LIBRARY": str(self.library),
            "OMP_NUM_THREADS": str(threads),
        }

    def caches(self, name: str) -> dict[str, str]:
        """Where a child keeps what it compiles; CUDA_CACHE_PATH is the driver's own."""
        place = self.folder / name.replace(" ", "_")
        return {"QUERN_CACHE": str(place / "quern.db"), "TRITON_CACHE_DIR": str(place / "triton"),
                "TRITON_CACHE_AUTOTUNING": "1", "CUDA_CACHE_PATH": str(place / "driver")}

    def empty(self, name: str) -> None:
        """Remove what an earlier child of this name left, make the folder."""
        place = self.folder / name.replace(" ", "_")
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)

    def run(self, script: str, cache: str, job: Job, **more: str) -> Figures:
        """The child's figures; to those with an end, `outer_s` from exec to it and the processor
        time, of its compilers too, are added."""
        environment = {**self.environment, **self.caches(cache), **more}
        command = [sys.executable, str(HERE / script), json.dumps(job)]
        begin, used = time.monotonic(), children_cpu_s()
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True,
                                  timeout=CHILD_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"took more than {CHILD_LIMIT_S:.0f} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ChildFailed(lines[-1])
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        if "end_s" in figures:
            figures.update(outer_s=figures.pop("end_s") - begin, cpu_s=children_cpu_s() - used)
        return figures


def children_cpu_s() -> float:
    """Processor time of all children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_starts(children: Children, start: Start, cache: str, count: int, say: Say) -> str:
    """Fill start.figures; returns why there are none, or ""."""
    begin = time.monotonic()
    try:
        while len(start.figures) < count:
            if start.is_cold:
                children.empty(cache)
            job = {**start.job, "cache": children.caches(cache)["QUERN_CACHE"]}
            start.figures.append(children.run("start_child.py", cache, job))
            if time.monotonic() - begin > SECONDS_A_KIND:
                break
    except ChildFailed as error:
        start.figures.clear()
        return f"{start.name}: {error}"
    inner, outer = (start.figure(name, 1e3)[0] for name in ("inner_s", "outer_s"))
    say(f"    {start.name}: {inner:.1f} ms, from exec {outer:.0f} ms "
        f"({len(start.figures)} processes)")
    return ""


# ---- First calls ------------------------------------------------------------------------------


class Measurement:
    """Everything that measure() collects."""

    def __init__(self, adapter: ModuleType, children: Children, say: Say, tune_s: float) -> None:
        self.adapter = adapter
        self.children = children
        self.say = say
        self.tune_s = tune_s
        self.kind = children.device.partition(":")[0]
        self.starts: list[Start] = []
        self.rows: list[Row] = []
        self.failed: list[str] = []

    @property
    def shapes(self) -> list[Shape]:
        """The adapter's, on this kind of device."""
        return list(self.adapter.STARTS[self.kind])

    def label(self, shape: Shape) -> str:
        """As in the table of shapes."""
        return str(self.adapter.label(self.adapter.params_of(
            shape, self.adapter.DTYPES[self.kind][0])))

    def job(self, what: str, shape: Shape, **more: Any) -> Job:
        return {"what": what, "device": self.children.device, "family": self.adapter.NAME,
                "shape": shape, "tune_s": 0, "config": "", **more}

    def pair(self, name: str, job: Job) -> tuple[Start, Start]:
        """Cold starts of this job, then warm ones with what the last cold one left: a warm one
        tunes nothing."""
        cold = Start(name + " cold", job, True)
        warm = Start(name + " warm", {**job, "tune_s": 0}, False)
        for start in (cold, warm):
            why = run_starts(self.children, start, name, PROCESSES[self.kind], self.say)
            self.starts.append(start)
            if why:
                self.failed.append(why)
                break
        return cold, warm

    def warm_page_cache(self, job: Job) -> bool:
        """What a process reads from disk is then in memory; it is not counted. Whether it ran."""
        self.children.empty("first")
        cache = self.children.caches("first")["QUERN_CACHE"]
        try:
            self.children.run("start_child.py", "first", {**job, "cache": cache})
        except ChildFailed as error:
            self.failed.append(str(error))
            return False
        return True


def worst(starts: list[Start]) -> Start | None:
    """The slowest by its inner clock: the figures are those of the slowest shape."""
    done = [x for x in starts if x.figures]
    return max(done, key=lambda x: x.figure("inner_s")[0] or 0.0) if done else None


def row_of(name: str, unit: str, figure: str, starts: tuple[Start | None, Start | None],
           scale: float = 1.0) -> Row:
    """A line with a figure of quern's start and of the peer's; empty where there is none."""
    cells = [start.figure(figure, scale) if start else (None, None) for start in starts]
    return Row(name, unit, *cells[0], *cells[1])


def expect(run: Measurement, start: Start, name: str, wanted: Any) -> None:
    """A start that did not do what it stands for is said."""
    others = [x[name] for x in start.figures if x[name] != wanted]
    if others:
        run.failed.append(f"{start.name}: {name} was {others[0]}, not {wanted}, "
                          f"in {len(others)} of {len(start.figures)}")


def quern_starts(run: Measurement) -> dict[str, Start | None]:
    """Untuned for every shape; tuned for the first one, where there is a budget for it."""
    shapes = run.shapes
    if not run.warm_page_cache(run.job("quern", shapes[0])):
        return {}
    colds, warms = [], []
    for shape in shapes:
        cold, warm = run.pair(f"quern untuned {run.label(shape)}", run.job("quern", shape))
        colds.append(cold)
        warms.append(warm)
    found = {"cold": worst(colds), "warm": worst(warms)}
    if run.tune_s:
        cold, warm = run.pair("quern tuned", run.job("quern", shapes[0], tune_s=run.tune_s))
        expect(run, warm, "config_from", "tuned")
        found.update({"tuned cold": worst([cold]), "tuned warm": worst([warm])})
        warms.append(warm)
    for start in colds:
        expect(run, start, "artifact", "compiled")
    for start in warms:
        expect(run, start, "artifact", "disk")
    return found


def peer_starts(run: Measurement) -> dict[str, Start | None]:
    """Autotuned, then in the config that this chose, where it can be given one; without a budget in
    any config. A peer that has none autotunes in each first call, whatever the budget."""
    name = run.adapter.START_PEERS.get(run.kind)
    if not name:
        return {}
    shape, has_configs = run.shapes[0], importlib.import_module(f"peers.{name}").HAS_CONFIGS
    config = "any" if has_configs else "none"
    if not run.warm_page_cache(run.job("peer", shape, peer=name, config=config)):
        return {}
    found: dict[str, Start | None] = {}
    if run.tune_s or not has_configs:
        cold, warm = run.pair("peer autotuned", run.job("peer", shape, peer=name))
        expect(run, warm, "tuning_s", 0.0)  # what was chosen came from disk
        found.update({"tuned cold": worst([cold]), "tuned warm": worst([warm])})
        config = cold.figures[-1]["config"] if cold.figures else config
    if not has_configs:
        return found
    cold, warm = run.pair("peer fixed", run.job("peer", shape, peer=name, config=config))
    return {**found, "cold": worst([cold]), "warm": worst([warm])}


def measure_first_calls(run: Measurement) -> Start | None:
    """Rows of first calls and tuning; returns quern's warm untuned start."""
    ours = quern_starts(run)
    peer = peer_starts(run)
    for name, key in (("first call, empty cache, one config", "cold"),
                      ("first call, warm cache, one config", "warm"),
                      ("first call, empty cache, tuning first", "tuned cold"),
                      ("first call, warm cache, tuned", "tuned warm")):
        both = ours.get(key), peer.get(key)
        run.rows += [row_of(name, "ms", "inner_s", both, 1e3),
                     row_of("  the same from exec", "ms", "outer_s", both, 1e3)]
    both = ours.get("tuned cold"), peer.get("tuned cold")
    run.rows += [row_of("tuning", "s", "tuning_s", both),
                 row_of("  candidates", "", "candidates", both)]
    return ours.get("warm")


# ---- Memory and size --------------------------------------------------------------------------


def make_empty_object(folder: Path) -> Path | None:
    """An object with empty(), which does nothing, by the compiler that is there; None: none is."""
    path = folder / "empty.o"
    for compiler in (os.environ.get("QUERN_CLANG"), "clang-19", "clang", "cc"):
        if not compiler:
            continue
        try:
            done = subprocess.run([compiler, "-O1", "-x", "c", "-c", "-", "-o", str(path)],
                                  input="void empty(void);\nvoid empty(void)\n{\n}\n", text=True,
                                  capture_output=True, check=False)
        except OSError:
            continue
        if not done.returncode:
            return path
    return None


def measure_memory(run: Measurement, warm: Start | None) -> None:
    """Resident memory of a warm process less that of one without quern's library, and less that
    of one that only links an empty object with LLVM. On the CPU, where LLVM is loaded."""
    if run.kind != "cpu" or not warm:
        return
    found = make_empty_object(run.children.folder)
    kb = {"warm": warm.figure("rss_kb")[0]}
    for what in ("bare", "context", "llvm") if found else ("bare", "context"):
        start = Start(what, {**warm.job, "what": what, "object": str(found)}, False)
        why = run_starts(run.children, start, warm.name.removesuffix(" warm"), 3, lambda line: None)
        kb[what] = start.figure("rss_kb")[0]
        run.starts.append(start)
        if why:
            run.failed.append(why)
    for name, what, base in (("resident, warm, beyond LLVM alone", "warm", "llvm"),
                             ("resident, warm, beyond Python", "warm", "bare"),
                             ("resident, a context only, beyond Python", "context", "bare")):
        more, less = kb.get(what), kb.get(base)
        row = Row(name, "MB")
        if more is not None and less is not None:
            row.quern = (more - less) * 1.024e-3
        run.rows.append(row)


def stripped_bytes(library: Path, folder: Path) -> int | None:
    """Size of the library without symbols; None where there is no strip."""
    path = folder / "stripped.so"
    try:
        done = subprocess.run(["strip", "-o", str(path), str(library)], capture_output=True,
                              check=False)
    except OSError:
        return None
    return path.stat().st_size if not done.returncode else None


# ---- Warm calls -------------------------------------------------------------------------------


def measure_calls(run: Measurement) -> Figures:
    """Rows in nanoseconds a call; returns the child's figures."""
    run.children.empty("calls")
    try:
        found = shared_object("call_cost.so", str(run.children.library))
        figures = run.children.run("call_child.py", "calls",
                                   {"device": run.children.device, "library": str(found),
                                    "family": run.adapter.NAME},
                                   OMP_NUM_THREADS="1")
    except (ChildFailed, Unavailable) as error:
        run.failed.append(str(error))
        return {}
    for x in figures["rows"]:
        row = Row(x["name"], "ns")
        if x["side"] == "quern":
            row.quern, row.quern_mad = x["ns"], x["mad_ns"]
        else:
            row.peer, row.peer_mad = x["ns"], x["mad_ns"]
        run.rows.append(row)
    return figures


# ---- All of it --------------------------------------------------------------------------------


def measure(adapter: ModuleType, device: str, threads: int, say: Say, tune_s: float
            ) -> dict[str, Any]:
    """All starts on `device` ("cpu", "cuda:0"): "starts" of the run's JSON; see the module.

    threads: of the CPU's products (the calls of the tiny one have one). say: told how it goes, a
    line at a time. tune_s: budget of quern's tuning in seconds, 0: nobody tunes. Takes about a
    minute on a CPU, two on a GPU. Raises quern.Error where there is no library.
    """
    kind = device.partition(":")[0]
    before = clock_cpu.usage()
    with tempfile.TemporaryDirectory(prefix="quern_starts_") as name:
        children = Children(device, threads, Path(name))
        run = Measurement(adapter, children, say, tune_s)
        warm = measure_first_calls(run)
        calls = measure_calls(run)
        measure_memory(run, warm)
        size = stripped_bytes(children.library, Path(name))
        run.rows.append(Row("libquern.so, stripped", "KB", size / 1e3 if size else None))
    for line in run.failed:
        say(f"    failed: {line}")
    wall, own, machine = (now - then for now, then in zip(clock_cpu.usage(), before))
    others = max(0.0, machine - own) / (wall * (os.cpu_count() or 1))
    say(f"    others had {others:.0%} of the processors")
    return {
        "device": device, "threads": threads, "peer": adapter.BESIDE[kind], "seconds": wall,
        "others": others, "tune_budget_s": run.tune_s,
        "shapes": list(map(run.label, run.shapes)),
        "rows": [vars(row) for row in run.rows], "details": [x.detail() for x in run.starts],
        "calls": calls, "failed": run.failed,
    }


def number(value: float | None, spread: float | None) -> str:
    """ "137.1 +- 2.4", or "" for what was not measured."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 1000 or value == int(value) else 1 if abs(value) >= 10 else 2
    text = f"{value:.{digits}f}"
    return f"{text} +- {spread:.{digits}f}" if spread else text


def table(starts: dict[str, Any]) -> list[str]:
    """The lines that are printed: name | quern | peer | unit. A call of torch's says so."""
    cells = [["starts", "quern", starts["peer"], "unit"]]
    for row in starts["rows"]:
        cells.append([row["name"], number(row["quern"], row["quern_mad"]),
                      number(row["peer"], row["peer_mad"]), row["unit"]])
    return report.aligned(cells)
