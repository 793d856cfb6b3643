#!/usr/bin/env python3
"""A page of HTML that collects runs: one file, opened from disk, nothing else needed.

    page.py RUN.json... DIR         runs saved by `beside.py --json`; its --page DIR calls write()

    run ---> section    head      device, date, versions, roof, peers that were skipped
                        summary   geometric mean and worst of each peer
                        pictures  plot.py's, as SVG inside the page
                        table     a line a shape; a click on a heading sorts
                        details   what every contestant chose, who was left out
                        starts    first calls, tuning, warm calls
    DIR/index.html <--- sections, and links to them where there are several

Every text of a run is escaped, so a run from elsewhere cannot add markup. The page fetches nothing
and works without JavaScript, but for sorting. Without matplotlib it has a line for its pictures.
It does not merge runs: each stands for itself, with its own machine and date.
"""
from __future__ import annotations

import base64
import html
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import plot, report
from harness.contest import Unavailable, reason

Run = plot.Run
Entry = plot.Entry

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 78rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0.3em 0; } h2 { font-size: 1.25rem; border-top: 2px solid #1a1a1a;
     padding-top: 0.6em; margin-top: 2em; } h3 { font-size: 1.05rem; margin: 1.6em 0 0.4em; }
.wide { overflow-x: auto; margin: 0.4em 0; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
td, th { padding: 0.2em 0.6em; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #ddd; }
th { background: #f4f0ec; font-weight: 600; vertical-align: bottom; }
th.peer { text-align: center; border-left: 2px solid #fff; }
td.text, th.text { text-align: left; } td.long { text-align: left; white-space: normal;
                   min-width: 12rem; overflow-wrap: anywhere; }
td.inner { padding-left: 1.8em; } tbody tr:hover { background: #faf6ee; }
.faster { background: #e3effa; } .slower { background: #fce6d6; } .busy { color: #a33; }
button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0;
         cursor: pointer; text-align: inherit; }
th[aria-sort] button::after { content: " \\25BE"; } th[aria-sort=ascending] button::after {
                              content: " \\25B4"; }
img { display: block; width: 100%; min-width: 38rem; max-width: 62rem; height: auto; }
.note { color: #555; font-size: 0.87rem; } summary { cursor: pointer; margin: 0.6em 0; }
@media (max-width: 40rem) { body { padding: 0.5rem; } td, th { padding: 0.2em 0.4em; } }
@media print { @page { size: A4 landscape; margin: 12mm; } body { font-size: 10px; padding: 0;
  max-width: none; } .wide { overflow: visible; } table, .note { font-size: 7px; } td, th {
  padding: 1px 3px; } thead { display: table-header-group; } tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } section + section { break-before: page; }
  img { max-width: 100%; max-height: 160mm; object-fit: contain; object-position: left; }
  button { display: contents; } details:not([open]) { display: none; } }
"""

SCRIPT = """
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentNode, table = head.closest("table"), body = table.tBodies[0];
  const column = Number(head.dataset.column);
  const down = head.getAttribute("aria-sort") !== "descending";
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return (down ? -1 : 1) * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  };
  [...body.rows].sort(order).forEach(row => body.append(row));
  table.querySelectorAll("th[aria-sort]").forEach(th => th.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}));
"""


class PageError(Unavailable):
    """A file that is no run, or a folder that cannot be written. One line."""


# ---- Markup --------------------------------------------------------------------------------------


def element(tag: str, inside: str | None, **attributes: Any) -> str:
    """`inside` is markup, None: the tag has no end; attributes are texts, data_x means data-x."""
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    said = "".join(f' {names[name]}="{html.escape(str(value))}"'
                   for name, value in attributes.items() if value is not None)
    return f"<{tag}{said}>" + ("" if inside is None else f"{inside}</{tag}>")


def text(tag: str, value: Any, **attributes: Any) -> str:
    """An element with a text in it."""
    return element(tag, html.escape(str(value)), **attributes)


def number(value: Any, shown: str, class_: str | None = None) -> str:
    """A cell that sorts by `value`; empty where that is not a number."""
    if not isinstance(value, (int, float)):
        return text("td", "", data_value="")
    return text("td", shown, data_value=f"{value:.6g}", class_=class_)


def short(value: float, flag: str = "") -> str:
    """Three digits or more: 1234, 123, 12, 1.23, 0.00123; with flag "#" 12.0."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:{flag}.3g}"


def table(heads: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """heads: markup of the head's lines; lines: markup of the cells."""
    head = "".join(element("tr", line) for line in heads)
    body = "\n".join(element("tr", "".join(cells)) for cells in lines)
    inside = element("thead", head) + element("tbody", body)
    return element("div", element("table", inside), class_="wide")


def heads(*names: str) -> str:
    """A line of plain headings; one that begins with "<" is over texts, which stand to the left."""
    return "".join(text("th", name.lstrip("<"), class_="text" if name.startswith("<") else None)
                   for name in names)


# ---- Head and summary ----------------------------------------------------------------------------


def title(run: Run) -> str:
    """What a run is called on the page and in links to it."""
    return f"{run.get('family', '?')} on {plot.device_name(run)}"


def head(run: Run) -> str:
    """Facts: date, device, machine, versions, roof; then who was skipped."""
    roof = run.get("roof", {})
    limits = [report.roof_text(roof), roof.get("how", "not measured")]
    facts = {"date": run.get("date", "?"), "device": run.get("device", "?"),
             **run.get("machine", {}), **run.get("peers", {}),
             "roof": "; ".join(filter(None, limits))}
    facts.pop("name", None)
    lines = [[text("td", name, class_="text"), text("td", value, class_="long")]
             for name, value in facts.items()]
    skipped = [text("p", f"{name} skipped: {why}", class_="note")
               for name, why in run.get("skipped", {}).items()]
    return table([], lines) + "".join(skipped)


def summary(run: Run) -> str:
    """Means of the peers, what tuning gained, which shapes say little."""
    against = plot.compared_of(run)
    lines = [mean_cells(mean, against.get(mean["peer"], "")) for mean in run.get("means", [])]
    names = heads("<peer", "<against", "<shapes", "count", "geometric mean", "worst", "<at")
    said = [report.tuning_text(run.get("tuning") or {}), report.worse_text(run),
            report.busy_text(run), report.ratio_text(run) if lines else ""]
    return ((table([names], lines) if lines else text("p", "No peer was compared with."))
            + "".join(text("p", line, class_="note") for line in said if line))


def mean_cells(mean: Mapping[str, Any], against: str) -> list[str]:
    """A line of the summary; marked where the machine was busy in all of its shapes."""
    is_busy = mean.get("is_busy")
    name = f"BUSY {mean['peer']}" if is_busy else mean["peer"]
    return [text("td", name, class_="text busy" if is_busy else "text"),
            text("td", against, class_="text"), text("td", mean["group"], class_="text"),
            text("td", mean["count"]), ratio_cell(mean["geomean"], None),
            ratio_cell(mean["worst"], None), text("td", mean["worst_label"], class_="text")]


# ---- Pictures ------------------------------------------------------------------------------------


def picture(run: Run, draw: Callable[[Run, Any, str | None], None], alt: str) -> str:
    """An SVG inside the page, or why there is none."""
    file = io.BytesIO()
    try:
        draw(run, file, "svg")
    except plot.PlotError as error:
        return text("p", f"No picture, {alt}: {error}", class_="note")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    image = element("img", None, src=f"data:image/svg+xml;base64,{data}", alt=alt)
    return element("div", image, class_="wide")


# ---- The table of shapes -------------------------------------------------------------------------


def ratio_cell(ratio: Any, spread: Any) -> str:
    """Ratio and its MAD; tinted where it is more than 2 % off 1."""
    if not isinstance(ratio, (int, float)):
        return number(None, "")
    tint = "faster" if ratio > 1.02 else "slower" if ratio < 0.98 else None
    return number(ratio, f"{ratio:.3f}" + (f" ±{spread:.3f}" if spread else ""), tint)


def share_cell(entry: Entry) -> str:
    share = entry.get("of_roof")
    return number(share, f"{100 * (share or 0):.0f} %")


def our_cells(row: plot.Row, entry: Entry | None) -> list[str]:
    """quern: us, MAD, TFLOPS, GB/s, share of the roof."""
    if not entry or not plot.is_figure(entry.get("us")):
        return [number(None, "")] * 5
    micros, spread = entry["us"], 100 * (entry.get("mad_us") or 0) / entry["us"]
    tera, giga = plot.tera(row, entry), row["bytes"] / micros * 1e-3
    return [number(micros, short(micros, "#")), number(spread, f"{spread:.1f} %"),
            number(tera, short(tera, "#")), number(giga, short(giga, "#")), share_cell(entry)]


def other_cells(entry: Entry | None) -> list[str]:
    """Another entry: us, and whether tuning lost; ratio, share of the roof."""
    if not entry or not plot.is_figure(entry.get("us")):
        return [number(None, "")] * 3
    over = report.worse_tuned(entry)
    micros = short(entry["us"], "#") + (f" TUNED SLOWER ×{over:.2f}" if over else "")
    return [number(entry["us"], micros),
            ratio_cell(entry.get("ratio"), entry.get("ratio_mad")), share_cell(entry)]


def shape_cells(row: plot.Row, columns: Sequence[str]) -> list[str]:
    """The parameters; the first says when the machine was busy with something else."""
    values = [row["shape"].get(column, "") for column in columns]
    cells = [number(value, str(value)) if isinstance(value, (int, float)) else text("td", value)
             for value in values]
    if row.get("is_busy"):
        cells[0] = text("td", f"BUSY {values[0]}", class_="busy", data_value=values[0])
    return cells


def shape_table(run: Run) -> str:
    """All shapes, quern, then three columns for every other entry."""
    columns, ours = plot.columns_of(run), plot.main_of(run)
    others = [name for name in plot.names_of(run) if name != ours]
    lines = []
    for row in run["rows"]:
        entries: dict[str, Entry] = {entry["name"]: entry for entry in row["entries"]}
        cells = shape_cells(row, columns) + our_cells(row, entries.get(ours))
        lines.append(cells + [cell for name in others for cell in other_cells(entries.get(name))])
    above = text("th", "shape", colspan=len(columns), class_="peer")
    above += text("th", ours, colspan=5, class_="peer")
    above += "".join(text("th", name, colspan=3, class_="peer") for name in others)
    below = [*columns, "us", "MAD", "TFLOPS", "GB/s", "of roof"]
    below += ["us", "ratio", "of roof"] * len(others)
    sorting = "".join(element("th", text("button", name, type="button"), data_column=place)
                      for place, name in enumerate(below))
    return table([above, sorting], lines)


def conditions(row: plot.Row) -> str:
    """Under what a shape was measured."""
    said = [f"{row.get('rounds', '?')} rounds, {row.get('dropped', 0)} dropped"]
    said.append(f"others had {row.get('noise') or 0:.1%} of the machine")
    said += [f"{name} {value}" for name, value in (row.get("clocks") or {}).items()]
    return ", ".join(said)


def details_of(row: plot.Row) -> list[list[str]]:
    """Lines of one shape: conditions, everyone's choice and error, who was left out."""
    error = [(entry["name"], (entry.get("detail") or "") + report.ready(entry),
              entry.get("rel_err"), entry.get("row_err")) for entry in row["entries"]]
    said = [("measured in", conditions(row), None, None), *error,
            *(("left out", why, None, None) for why in row.get("left_out", []))]
    return [[text("td", row["label"], class_="text"), text("td", name, class_="text"),
             text("td", what, class_="long"),
             *(number(value, f"{value or 0:.1e}") for value in (whole, worst))]
            for name, what, whole, worst in said]


def details(run: Run) -> str:
    """All that the table has no room for, folded away."""
    names = heads("<shape", "<contestant", "<what it chose", "relative error", "of the worst row")
    return element("details", text("summary", "What everyone chose, and the errors of the results")
                   + table([names], (line for row in run["rows"] for line in details_of(row))))


# ---- Starts --------------------------------------------------------------------------------------


def starts(run: Run) -> str:
    """First calls, tuning, warm calls; "" where they were not measured."""
    found = run.get("starts") or {}
    if not found.get("rows"):
        return ""
    sides = ["quern", "peer"] if found.get("peer") else ["quern"]
    lines = [[text("td", row["name"], class_="text inner" if row["name"][0] == " " else "text"),
              *(start_cell(row, side) for side in sides), text("td", row["unit"], class_="text")]
             for row in found["rows"]]
    names = ["<", *(found["peer"] if side == "peer" else side for side in sides), "<unit"]
    shapes = ", ".join(found.get("shapes", []))
    notes = [f"Of {shapes}; medians over new processes ± MAD."] if shapes else []
    notes += [f"failed: {why}" for why in found.get("failed", [])]
    return (text("h3", "Starts and calls") + table([heads(*names)], lines)
            + "".join(text("p", note, class_="note") for note in notes))


def start_cell(row: Mapping[str, Any], side: str) -> str:
    value, spread = row.get(side), row.get(f"{side}_mad")
    if not isinstance(value, (int, float)):
        return number(None, "")
    return number(value, short(value) + (f" ±{short(spread)}" if spread else ""))


# ---- The page ------------------------------------------------------------------------------------


def section(run: Run, place: int) -> str:
    """One run."""
    parts = [text("h2", f"{title(run)}, {run.get('date', '?')}", id=f"run{place}"), head(run),
             text("h3", "Summary"), summary(run), text("h3", "Pictures"),
             picture(run, plot.ratio_plot, "ratio by shape"),
             picture(run, plot.roofline_plot, "roofline"),
             text("h3", f"Shapes ({len(run['rows'])})"), shape_table(run), details(run),
             starts(run)]
    return element("section", "\n".join(parts))


def checked_section(run: Run, place: int) -> str:
    """section(), or PageError for what is no run: other names, other types, impossible values."""
    try:
        return section(run, place)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise PageError(f"run {place + 1} of the page is not what `beside.py --json` wrote: "
                        f"{reason(error)}") from error


def page(runs: Sequence[Run]) -> str:
    """The whole page as text. Raises PageError."""
    sections = [checked_section(run, place) for place, run in enumerate(runs)]
    links = [element("li", text("a", f"{title(run)}, {run.get('date', '?')}", href=f"#run{place}"))
             for place, run in enumerate(runs)]
    contents = element("ul", "".join(links)) if len(runs) > 1 else ""
    body = [text("h1", "quern beside its peers"), contents,
            *sections, element("script", SCRIPT)]
    return "\n".join([
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        text("title", f"quern: {', '.join(dict.fromkeys(map(title, runs)))}"),
        element("style", STYLE), "</head>\n<body>", *body, "</body>\n</html>\n"])


def write(runs: Sequence[Run], directory: Any) -> Path:
    """Write index.html into `directory`, which is made if need be; returns its path.

    runs: at least one. An older page is replaced whole or not at all. Raises PageError.
    """
    path = Path(directory) / "index.html"
    whole = page(runs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(whole, encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        raise PageError(f"{path}: {error.strerror}") from error
    return path


def read(name: str) -> Run:
    """A saved run. Raises PageError for what is none."""
    try:
        run = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise PageError(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise PageError(f"{name}: is not JSON: {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("rows"), list):
        raise PageError(f"{name}: has no rows: must be what `beside.py --json` wrote")
    return run


def main(arguments: Sequence[str]) -> int:
    """Exit status 2 for a wrong command line, 1 for what cannot be read or written."""
    if len(arguments) < 2 or arguments[0].startswith("-"):
        print("usage: page.py RUN.json... DIR", file=sys.stderr)
        return 2
    try:
        print(write([read(name) for name in arguments[:-1]], arguments[-1]))
    except PageError as error:
        print(f"page.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
