"""What a run says: the head, a line a shape while it goes on, the table, the means; the JSON.

All of it is made from the run's JSON object (docs in rows.py and figures.py), so that a saved run
prints the same. Texts only; pictures are plot.py's and page.py's.
"""
from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Mapping, TextIO

Run = dict[str, Any]

WORSE = 1.05  # tuned over untuned: from here the tuner's choice is said to be the worse one


# ---- Head and progress ------------------------------------------------------------------------


def head(run: Run) -> list[str]:
    """Device, versions, roof."""
    machine = run["machine"]
    device = [run["device"], machine.get("name"), machine.get("device")]
    facts = {"date": run["date"], "device": ", ".join(text for text in device if text)}
    for name, text in {**machine, **run["peers"]}.items():
        facts.setdefault(name, text)
    facts.pop("name", None)
    lines = [f"{name:<18} {value}" for name, value in facts.items()]
    lines += [f"peer {name} skipped: {why}" for name, why in run["skipped"].items()]
    return lines + roof_lines(run["roof"])


def roof_lines(roof: dict[str, Any]) -> list[str]:
    """The ceilings, or why there are none."""
    if not roof_text(roof):
        return [f"{'roof':<18} {roof.get('how', 'not measured')}"]
    return [f"{'roof':<18} {roof_text(roof)}", f"{'':<18} {roof['how']}"]


def roof_text(roof: dict[str, Any]) -> str:
    """The rates; "" where they were not measured."""
    if not roof.get("flops"):
        return ""
    flops = ", ".join(f"{kind} {rate * 1e-12:.3g}" for kind, rate in roof["flops"].items())
    return f"{flops} TFLOPS, {roof['bytes_per_s'] * 1e-9:.4g} GB/s"


def progress(row: dict[str, Any]) -> list[str]:
    """A shape that is done: everyone's time and ratio, and who was left out."""
    said = [f"{entry['name']} {entry['us']:.1f} us" + (
        f" (x{entry['ratio']:.3f})" if entry["ratio"] and entry["role"] != "ours" else "")
        for entry in row["entries"]]
    inexact = [f"    {entry['name']}: relative error {entry['rel_err']:.1e}, "
               f"{entry['allowed']:.1e} is asked of ours" for entry in row["entries"]
               if is_inexact(entry)]
    busy = [f"    others had {row['noise']:.0%} of the machine: BUSY, distrust this shape"]
    lines = [f"    {', '.join(said) or 'nobody is left'}"]
    lines += [f"    left out: {line}" for line in row["left_out"]] + inexact
    lines += [f"    {entry['against']}: TUNED SLOWER, {over:.3f} times {entry['name']}"
              + (", in the same config" if is_same_config(entry, row["entries"]) else "")
              for entry in row["entries"] if (over := worse_tuned(entry))]
    return lines + busy if row["is_busy"] else lines


def is_inexact(entry: dict[str, Any]) -> bool:
    """Whether a peer plays that is further off than ours may be."""
    allowed = entry.get("allowed")
    return allowed is not None and bool(entry["rel_err"] > allowed)


def is_same_config(entry: dict[str, Any], entries: list[dict[str, Any]]) -> bool:
    """Whether an entry of ours runs what the one runs that it is compared with: what differs is
    then noise. Details are "tuned: VARIANT CONFIG"."""
    choices = [each["detail"].partition(": ")[2] for each in entries
               if each["name"] in (entry["name"], entry["against"])]
    return len(choices) == 2 and bool(choices[0]) and choices[0] == choices[1]


def details(row: dict[str, Any]) -> list[str]:
    """What each contestant chose, and how right it was."""
    return [f"    {entry['name']}: {entry['detail'] or '-'}{ready(entry)}; "
            f"error {entry['rel_err']:.1e}, of a row {entry['row_err']:.1e}"
            for entry in row["entries"]]


def ready(entry: dict[str, Any]) -> str:
    """How long it took until the contestant could be called, and how, where that is known."""
    seconds, how = entry.get("first_s"), entry.get("first_how")
    if not seconds or not math.isfinite(seconds):
        return ""
    return f"; ready in {seconds:.2f} s" + (f", {how}" if how else "")


def worse_tuned(entry: Mapping[str, Any]) -> float | None:
    """How many times the untuned call's time the tuned one takes, where that is above WORSE; None
    for any other entry."""
    if entry.get("role") != "untuned" or not entry.get("ratio"):
        return None
    over = 1 / float(entry["ratio"])
    return over if over > WORSE else None


# ---- Table ------------------------------------------------------------------------------------


def table(run: Run) -> list[str]:
    """One line a shape, columns aligned; a column for every peer that entered anything."""
    columns = {entry["name"]: entry["role"] for row in run["rows"] for entry in row["entries"]
               if entry["name"] != "quern"}
    columns = dict(sorted(columns.items(), key=lambda item: item[1] == "untuned"))
    heads = [f"{name} us, ratio, of roof" if role == "peer" else f"{name} us"
             for name, role in columns.items()]
    clocks = ["SM MHz"] if any(row["clocks"].get("sm_mhz") for row in run["rows"]) else []
    cells = [["shape", "quern us", "TFLOPS", "GB/s", "of roof", *heads, *clocks, "config"]]
    for row in run["rows"]:
        entries = {entry["name"]: entry for entry in row["entries"]}
        others = [other_cell(entries.get(name)) for name in columns]
        cells.append([row["label"] + (" BUSY" if row["is_busy"] else ""),
                      *our_cells(row, entries.get("quern")), *others,
                      *[str(row["clocks"].get("sm_mhz", "-")) for _ in clocks],
                      config_cell(entries)])
    return aligned(cells)


def our_cells(row: dict[str, Any], entry: dict[str, Any] | None) -> list[str]:
    """Time, rates, share of the roof."""
    if not entry:
        return ["-"] * 4
    seconds = entry["us"] * 1e-6
    return [f"{entry['us']:.1f} +-{100 * entry['mad_us'] / entry['us']:.1f}%",
            f"{row['flops'] / seconds * 1e-12:.3g}", f"{row['bytes'] / seconds * 1e-9:.4g}",
            share(entry["of_roof"])]


def other_cell(entry: dict[str, Any] | None) -> str:
    """A peer's time, ratio and share; of ours the time alone, and whether tuning lost."""
    if not entry:
        return "-"
    if entry["role"] != "peer":
        over = worse_tuned(entry)
        return f"{entry['us']:.1f}" + (f" TUNED SLOWER x{over:.2f}" if over else "")
    error = f", error {entry['rel_err']:.1e}" if is_inexact(entry) else ""
    if entry["ratio"] is None:
        return f"{entry['us']:.1f}, -, {share(entry['of_roof'])}{error}"
    return (f"{entry['us']:.1f}, {entry['ratio']:.3f} +-{entry['ratio_mad']:.3f}, "
            f"{share(entry['of_roof'])}{error}")


def config_cell(entries: dict[str, dict[str, Any]]) -> str:
    """What ours chose."""
    return entries["quern"]["detail"] if "quern" in entries else "-"


def share(value: float | None) -> str:
    """Two digits, "-" where it is not known."""
    return "-" if value is None else f"{value:.2f}"


def aligned(cells: list[list[str]]) -> list[str]:
    """The lines of a table; the first and the last column to the left."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for line in cells:
        padded = [cell.ljust(width) if place in (0, len(widths) - 1) else cell.rjust(width)
                  for place, (cell, width) in enumerate(zip(line, widths))]
        lines.append(f"| {' | '.join(padded)} |")
    return [lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]]


def means(run: Run) -> list[str]:
    """Geometric mean and worst of each peer; what tuning gained."""
    cells = [["peer over quern", "shapes", "count", "geomean", "worst", "at"]]
    for mean in run["means"]:
        cells.append([mean["peer"], mean["group"], str(mean["count"]), f"{mean['geomean']:.3f}",
                      f"{mean['worst']:.3f}", mean["worst_label"]])
    lines = aligned(cells) if run["means"] else ["no peer was compared with"]
    further = [tuning_text(run.get("tuning") or {}), worse_text(run), busy_text(run),
               ratio_text(run)]
    return lines + [line for line in further if line]


def ratio_text(run: Mapping[str, Any]) -> str:
    """What a ratio is; whom of ours some peers are held against instead of `quern`."""
    others = {entry["against"]: entry["name"] for row in run["rows"] for entry in row["entries"]
              if entry["role"] == "peer" and entry["against"] not in (None, "quern")}
    over = "".join(f" ({name} over {base})" for base, name in others.items())
    return f"A ratio is a peer's time over quern's{over}: above 1, quern is faster."


def tuning_text(gain: dict[str, Any]) -> str:
    """What tuning gained; "" where nothing was tuned."""
    if not gain:
        return ""
    return (f"untuned over tuned: geomean {gain['geomean']:.3f}, most {gain['worst']:.3f} "
            f"at {gain['worst_label']}; the longest tuning {gain['longest_s']:.1f} s")


def worse_text(run: Mapping[str, Any]) -> str:
    """The shapes whose tuned call is the slower one; "" where there are none."""
    found = [f"{row['label']} ({over:.3f})" for row in run["rows"] for entry in row["entries"]
             if (over := worse_tuned(entry))]
    if not found:
        return ""
    return (f"TUNED SLOWER, {len(found)} of {len(run['rows'])} shapes: tuned over untuned above "
            f"{WORSE} at {', '.join(found)}")


def busy_text(run: Mapping[str, Any]) -> str:
    """How many shapes were disturbed; "" where none was."""
    busy = sum(bool(row.get("is_busy")) for row in run["rows"])
    if not busy:
        return ""
    counts = "count above all the same" if busy == len(run["rows"]) else "do not count above"
    return f"BUSY, {busy} of {len(run['rows'])} shapes: they say little, and {counts}"


# ---- JSON -------------------------------------------------------------------------------------


def without_nan(value: Any) -> Any:
    """The same with null for what JSON cannot say."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(inside) for key, inside in value.items()}
    return [without_nan(inside) for inside in value] if isinstance(value, list) else value


def write(run: Run, path: str, stdout: TextIO) -> None:
    """The object to a file, replaced whole, or to `stdout` where path is "-"."""
    text = json.dumps(without_nan(run), indent=1) + "\n"
    if path == "-":
        stdout.write(text)
        return
    beside = Path(f"{path}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
