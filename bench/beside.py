#!/usr/bin/env python3
"""beside.py FAMILY: quern beside the libraries that compute the same, in one process.

    options --> device, shapes, peers --> facts, roof --> a shape at a time --> table, means
                                                              |                [--starts]
                                                              +--> JSON, picture, page

bench/README.md says how it measures and what the columns are. Exit status: 2 for an option that
cannot be (one line says what is allowed), 1 where the device or the library is missing or ours was
left out of a shape, 130 where Ctrl-C ended it (what was measured is printed), else 0.
"""
from __future__ import annotations

import argparse
import faulthandler
import importlib
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, NoReturn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from harness import figures, machine, report, rows, shapes  # noqa: E402 (the path comes first)
from harness.contest import Limits, Say, Unavailable  # noqa: E402
from harness.shapes import BadOption  # noqa: E402
from peers import FAMILIES  # noqa: E402

STOPPED = 130  # as a shell says it of Ctrl-C
DEFAULTS = {"cpu": {"tune": 4.0, "rounds": 60, "seconds": 4.0},
            "cuda": {"tune": 5.0, "rounds": 31, "seconds": 3.0}}


class Absent(Exception):
    """The device, or what it needs, is not here: one line."""


# ---- Options ----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        raise BadOption(message.replace("argument ", "", 1))


def number(text: str, wanted: str, is_right: Callable[[float], bool]) -> float:
    """The number that `text` is, if it is right."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and is_right(value)):
        raise argparse.ArgumentTypeError(f"{text}: must be {wanted}")
    return value


def seconds(text: str) -> float:
    """Above 0."""
    return number(text, "a number of seconds above 0", lambda value: value > 0)


def budget(text: str) -> float:
    """Seconds, or 0."""
    return number(text, "a number of seconds, or 0", lambda value: value >= 0)


def is_count(value: float) -> bool:
    """1, 2, 3, ..."""
    return value >= 1 and value % 1 == 0


def count(text: str) -> int:
    """A whole number, 1 or more."""
    return int(number(text, "a whole number, 1 or more", is_count))


def parser() -> Parser:
    """The options; what they may be beyond their form is checked once all are known."""
    found = Parser(prog="beside.py", allow_abbrev=False,
                   description="quern beside what else computes the same")
    found.add_argument("family", nargs="?", default="", metavar="FAMILY", help=" ".join(FAMILIES))
    add = found.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--shapes", help="a file, or a set of bench/shapes/FAMILY")
    add("--only", metavar="TEXT", help="the shapes whose line has TEXT in it")
    add("--sample", type=count, metavar="N", help="N shapes, evenly spread over the set")
    add("--peers", metavar="A,B", help="only these; none: quern alone")
    add("--dtype", help="instead of what the shapes say")
    add("--tune", type=budget, metavar="SECONDS",
        help="a shape (4 on the CPU, 5 on a GPU); 0: untuned only")
    add("--cache", default="", metavar="FILE", help="quern's; without: in memory")
    add("--variant", help="quern: only this one")
    add("--config", help="quern: these choices, untuned")
    add("--rounds", type=count, metavar="N", help="at most")
    add("--seconds", type=seconds, metavar="S", help="of rounds, a shape")
    add("--threads", type=count, metavar="N", help="CPU; else OMP_NUM_THREADS, else 2")
    add("--starts", action="store_true", help="what first calls and launches cost, too")
    add("--json", metavar="FILE", help="the run as an object; -: on stdout, the talk on stderr")
    add("--plot", type=picture, metavar="FILE.png", help="ratios and roofline")
    add("--page", metavar="DIR", help="a page of HTML with all of it")
    add("-v", "--verbose", action="store_true", help="what every contestant chose")
    return found


def check_options(options: argparse.Namespace) -> ModuleType:
    """The family's adapter; options that depend on it and on the device made definite."""
    if options.family not in FAMILIES:
        raise BadOption(f"FAMILY={options.family}: must be one of {' '.join(FAMILIES)}")
    adapter = importlib.import_module(f"peers.{options.family}")
    kind, _, number = options.device.partition(":")
    if kind not in adapter.DTYPES or (options.device != kind and
                                      not (kind == "cuda" and number.isdecimal())):
        raise BadOption(f"--device {options.device}: must be cpu, cuda or cuda:N")
    options.device = f"cuda:{int(number or 0)}" if kind == "cuda" else "cpu"
    known = list(adapter.PEERS[kind])
    options.peers = known if options.peers is None else chosen_peers(options.peers, known)
    if options.dtype and options.dtype not in adapter.DTYPES[kind]:
        raise BadOption(f"--dtype {options.dtype}: must be one of "
                        f"{' '.join(adapter.DTYPES[kind])} on {kind}")
    for name, value in DEFAULTS[kind].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.config:
        options.tune = 0.0
    options.threads = options.threads or default_threads()
    return adapter


def chosen_peers(text: str, known: list[str]) -> list[str]:
    """The names of --peers."""
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in known or names.count(name) > 1:
            raise BadOption(f"--peers {name}: must be none, or of {','.join(known)}, each once")
    return names


def picture(text: str) -> str:
    """The file of --plot."""
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text}: must end in .png")
    return text


def check_outputs(options: argparse.Namespace) -> None:
    """What is written at the end must be writable before anything is measured."""
    for name, path in (("--json", options.json), ("--plot", options.plot)):
        folder = Path(path or ".").absolute().parent
        if path not in (None, "-") and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise BadOption(f"{name} {path}: must be in a folder that can be written to")
    try:
        if options.page:
            os.makedirs(options.page, exist_ok=True)
    except OSError as failure:
        raise BadOption(f"--page {options.page}: {failure.strerror}: must be a folder, or one "
                        "that can be made") from None


def default_threads() -> int:
    """OMP_NUM_THREADS, else 2, of those that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else min(2, len(os.sched_getaffinity(0)))


def chosen_shapes(options: argparse.Namespace, adapter: ModuleType) -> list[dict[str, int | str]]:
    """The shapes of the run, in the order of the file."""
    kind = options.device.partition(":")[0]
    dtype = {"dtype": options.dtype} if options.dtype else {}
    path = shapes.find(options.family, options.shapes or adapter.DEFAULT_SHAPES[kind])
    known = shapes.read(path, adapter.COLUMNS, lambda line: adapter.params_of(
        {**line, **dtype}, adapter.DTYPES[kind][0]))
    found = [params for params in known if (options.only or "") in adapter.label(params)]
    if not found:
        raise BadOption(f"--only {options.only}: must be in a shape's line, "
                        f"such as {adapter.label(known[0])}")
    return shapes.sample(found, options.sample) if options.sample else found


# ---- Before -----------------------------------------------------------------------------------


def set_environment(threads: int) -> None:
    """What libraries read when they are loaded: so before any of them is.

    An idle team of OpenBLAS sleeps after 2^22 cycles rather than 2^28: within a turn it stays awake
    all the same, and the next contestant need not wait 0.1 s for it.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "22")
    for name in ("QUERN_CACHE", "QUERN_MODE", "QUERN_TEMPLATES"):
        os.environ.pop(name, None)


def find_quern() -> ModuleType:
    """The package of this tree, else the one that is installed."""
    source = HERE.parent / "python"
    if (source / "quern").is_dir():
        sys.path.insert(0, str(source))
    try:
        return importlib.import_module("quern")
    except ImportError as failure:
        raise Absent(f"quern: {failure}") from failure


def check_device(device: str) -> None:
    """Absent where the device cannot be used from here, BadOption where there are fewer."""
    if device == "cpu":
        try:
            importlib.import_module("numpy")
        except ImportError as failure:
            raise Absent(f"--device cpu needs NumPy: {failure}") from failure
        return
    try:
        torch = importlib.import_module("torch")
    except ImportError as failure:
        raise Absent(f"--device {device} needs torch: {failure}") from failure
    if not torch.cuda.is_available():
        raise Absent(f"--device {device}: torch finds no usable GPU")
    devices = torch.cuda.device_count()
    if int(device.partition(":")[2]) >= devices:
        raise BadOption(f"--device {device}: must be cuda:0 to cuda:{devices - 1} here")
    torch.cuda.set_device(device)


def open_session(options: argparse.Namespace, adapter: ModuleType, quern: ModuleType,
                 say: Say) -> tuple[Any, dict[str, Any]]:
    """The session with its roof measured, and the run's object without rows. Raises quern.Error."""
    from harness import roof, session

    peers, skipped = session.open_peers(adapter, options.peers, options.device, options.threads)
    tuned, untuned = (quern.Context(device=options.device, cache=cache, threads=options.threads)
                      for cache in (options.cache, ""))
    choice = {name: getattr(options, name) for name in ("variant", "config")
              if getattr(options, name)}
    opened = session.Session(adapter, options.device, options.threads, tuned, untuned, peers,
                             Limits(options.seconds, options.rounds), options.tune, choice, say)
    try:
        if options.device == "cpu":
            opened.cpu_roof = roof.CpuRoof(options.threads, str(quern.library_path()),
                                           opened.arrays)
        opened.measure_roof()
    except Unavailable as failure:
        opened.roof["how"] = str(failure)
    return opened, {
        "family": options.family, "date": machine.now(), "device": options.device,
        "machine": machine.facts(options.device, options.threads, quern.__version__),
        "roof": opened.roof, "peers": {peer.name: peer.version() for peer in peers},
        "skipped": skipped, "rows": [], "means": [], "tuning": {}, "starts": {},
    }


# ---- The run ----------------------------------------------------------------------------------


def measure(options: argparse.Namespace, chosen: list[dict[str, int | str]], opened: Any,
            run: dict[str, Any], say: Say) -> None:
    """A row for each shape; a saved object is kept up to date, so that an end loses nothing."""
    for number, params in enumerate(chosen, 1):
        say(f"[{number}/{len(chosen)}] {opened.adapter.label(params)}")
        row = opened.shape(params)
        if row is None:
            continue
        run["rows"].append(row)
        for each in run["rows"]:
            rows.against_roof(each, run["roof"])
        run["means"] = figures.means(run["rows"], opened.adapter.GROUPS)
        run["tuning"] = figures.tuning(run["rows"])
        for line in report.progress(row) + (report.details(row) if options.verbose else []):
            say(line)
        if options.json and options.json != "-":
            report.write(run, options.json, sys.stdout)


def tell(options: argparse.Namespace, run: dict[str, Any], say: Say) -> None:
    """The table, the means, the files."""
    for line in ["", *report.table(run), "", *report.means(run)]:
        say(line)
    if run["starts"]:
        from harness import starts

        for line in ["", *starts.table(run["starts"])]:
            say(line)
    if options.json:
        report.write(run, options.json, sys.stdout)
    if options.plot:
        from harness import plot

        plot.plot(run, options.plot)
    if options.page:
        from harness import page

        page.write([run], options.page)


def run_all(options: argparse.Namespace) -> int:
    """Everything; raises BadOption and Absent before anything is measured."""
    adapter = check_options(options)
    chosen = chosen_shapes(options, adapter)
    set_environment(options.threads)
    check_outputs(options)
    if options.plot:
        from harness import plot

        plot.require()
    check_device(options.device)
    quern = find_quern()

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json == "-" else sys.stdout, flush=True)

    try:
        opened, run = open_session(options, adapter, quern, say)
    except quern.Error as failure:
        raise Absent(f"quern: {failure}") from failure
    for line in [*report.head(run), ""]:
        say(line)
    try:
        measure(options, chosen, opened, run, say)
        if options.starts:
            from harness import starts

            run["starts"] = starts.measure(adapter, options.device, options.threads, say,
                                           options.tune)
    except KeyboardInterrupt:
        say("stopped: this is what was measured until then")
        tell(options, run, say)
        return STOPPED
    tell(options, run, say)
    return 0 if run["rows"] and not any(row["is_ours_lost"] for row in run["rows"]) else 1


def main(arguments: list[str]) -> int:
    """The exit status."""
    faulthandler.enable()
    try:
        return run_all(parser().parse_args(arguments))
    except BadOption as failure:
        print(f"beside.py: {failure}", file=sys.stderr)
        return 2
    except (Absent, Unavailable) as failure:
        print(f"beside.py: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
