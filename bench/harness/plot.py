"""Pictures of a run: the ratio by shape, and the roofline.

    run, the JSON object of `beside.py --json`
      rows[].entries[].ratio  -------> ratio_plot      a line a shape, a mark a peer
      rows[].flops, bytes, roof  ----> roofline_plot   flops a byte against TFLOPS, ceilings above
      both, one above the other  ----> plot            --plot out.png

Who is ours is told by `role`, whom an entry is compared with by `against`; lines stand together as
the row's `groups` say. A run of more than MOST_LINES shapes has a line for each value of the first
parameter instead (gemm: m): its shapes as a cloud of faint dots, their geometric mean as the mark.
Colours are those of Okabe and Ito, and every peer has a marker of its own, so neither colour vision
nor a colour printer is needed.

Matplotlib is imported when something is drawn, without pyplot: no window, no global state, any
thread. It measures nothing and adds nothing up that the run does not hold, but for the marks of
such a cloud.
"""
from __future__ import annotations

import importlib
import math
import textwrap
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from harness.contest import Unavailable
from harness.figures import geometric_mean

Run = Mapping[str, Any]  # what json.load() gives
Row = Mapping[str, Any]  # one of run["rows"]
Entry = Mapping[str, Any]  # one of row["entries"]

MOST_LINES = 60
WIDTH_INCHES = 10.0
LEGEND_COLUMNS = 2
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SHADE = "#F4F0EC"
RATIO_TICKS = (
    (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8),
    (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4),
    (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20),
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
)


class PlotError(Unavailable):
    """Nothing can be drawn: no matplotlib, no times, a path that is not writable. One line."""


@dataclass(frozen=True)
class Mark:
    """A peer on one line of the ratio picture."""

    ratios: tuple[float, ...]  # one a shape of the line
    mad: float  # of a single ratio; 0 where there are several

    @property
    def mean(self) -> float:
        return geometric_mean(self.ratios)


@dataclass(frozen=True)
class Line:
    """One line of the ratio picture: a shape, or all shapes of a group with one first parameter."""

    label: str
    group: str  # lines of another group stand apart
    marks: dict[str, Mark]  # by the peer's name


@dataclass(frozen=True)
class Style:
    """How a contestant is drawn, the same in both pictures."""

    colour: str
    marker: str
    is_filled: bool


# ---- What a run holds ----------------------------------------------------------------------------


def is_figure(value: Any) -> bool:
    """Whether `value` can stand on a logarithmic axis."""
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def count_of(number: int, noun: str) -> str:
    """"1 shape", "2 shapes"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def plain(text: Any) -> str:
    """A text of the run's as matplotlib shows it unchanged: a $ begins no formula."""
    return str(text).replace("$", r"\$")


def entries_of(run: Run) -> list[Entry]:
    """The entries of all rows."""
    return [entry for row in run["rows"] for entry in row["entries"]]


def main_of(run: Run) -> str:
    """The name of ours that most shapes have, "quern"; "" where all were left out."""
    ours = [entry["name"] for entry in entries_of(run) if entry["role"] == "ours"]
    return max(dict.fromkeys(ours), key=ours.count, default="")


def names_of(run: Run) -> list[str]:
    """Names of all entries, each once: main_of(run), our others, peers in order of appearance."""
    roles = {entry["name"]: entry["role"] for entry in entries_of(run)}
    first = main_of(run)
    return sorted(roles, key=lambda name: (roles[name] == "peer", name != first))


def is_compared(entry: Entry) -> bool:
    """Whether an entry has a ratio to another than itself."""
    return is_figure(entry.get("ratio")) and entry["against"] != entry["name"]


def compared_of(run: Run) -> dict[str, str]:
    """Whom everyone was compared with, by name, in the order of names_of(): "quern prepacked"."""
    found: dict[str, dict[str, None]] = {name: {} for name in names_of(run)}
    for entry in filter(is_compared, entries_of(run)):
        found[entry["name"]][str(entry["against"])] = None
    return {name: " or ".join(against) for name, against in found.items() if against}


def ceiling_flops(run: Run, dtype: str) -> float | None:
    """Measured flops a second for `dtype`; roof.flops is a number, or one for each dtype."""
    flops = run.get("roof", {}).get("flops")
    if isinstance(flops, Mapping):
        flops = flops.get(dtype)
    return float(flops) if is_figure(flops) else None


def versions_of(run: Run) -> list[str]:
    """The peers' own words, "OpenBLAS 0.3.21", after the peer's name where they lack it."""
    peers = run.get("peers", {}).items()
    return [str(v) if n.lower() in str(v).lower() else f"{n} {v}" for n, v in peers]


def dtypes_of(run: Run) -> list[str]:
    """Dtypes of a run's shapes, each once."""
    shapes = (row["shape"] for row in run["rows"])
    return list(dict.fromkeys(str(shape["dtype"]) for shape in shapes if "dtype" in shape))


# ---- Lines of the ratio picture ------------------------------------------------------------------


def lines_of(run: Run) -> list[Line]:
    """A line for every shape; for every first parameter and dtype where the shapes are many."""
    rows = in_order(run["rows"])
    columns = columns_of(run)
    if len(rows) > MOST_LINES:
        return _lines_of_many(rows, columns[0])
    labels = _aligned(rows, columns)
    return [_line_of_row(row, label) for row, label in zip(rows, labels[1:])]


def group_of(row: Row) -> str:
    """The first of a row's groups; "" for a row between them."""
    return str(next(iter(row.get("groups") or ()), ""))


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Groups together, the one with the smallest shape first; inside one by the parameters."""
    def size(row: Row) -> list[tuple[bool, Any]]:
        return [(isinstance(value, str), value) for value in row["shape"].values()]

    rows = sorted(rows, key=size)
    groups = list(dict.fromkeys(map(group_of, rows)))
    return sorted(rows, key=lambda row: groups.index(group_of(row)))


def _line_of_row(row: Row, label: str) -> Line:
    marks = {e["name"]: Mark((e["ratio"],), e.get("ratio_mad") or 0.0)
             for e in row["entries"] if is_compared(e)}
    return Line(label, group_of(row), marks)


def _lines_of_many(rows: Sequence[Row], column: str) -> list[Line]:
    found: dict[tuple[str, ...], list[Line]] = {}
    for row in rows:
        line = _line_of_row(row, f"{column}={row['shape'][column]} {row['shape'].get('dtype', '')}")
        found.setdefault((line.group, line.label), []).append(line)
    lines = []
    for (group, label), members in found.items():
        ratios: dict[str, list[float]] = {}
        for line in members:
            for name, mark in line.marks.items():
                ratios.setdefault(name, []).extend(mark.ratios)
        lines.append(Line(f"{label}, {count_of(len(members), 'shape')}", group,
                          {name: Mark(tuple(all_), 0.0) for name, all_ in ratios.items()}))
    return lines


def columns_of(run: Run) -> list[str]:
    """Names of the parameters that tell the shapes apart: no word and no batch that all share."""
    found = dict.fromkeys(key for row in run["rows"] for key in row["shape"] if key != "note")
    values = {key: {row["shape"].get(key) for row in run["rows"]} for key in found}
    words = {key for key, those in values.items() if all(isinstance(x, str) for x in those)}
    return [key for key in found if key not in {"batch", *words} or len(values[key]) > 1]


def _aligned(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """A heading, then the rows' parameters below each other; for a font of fixed width.

    Where the machine was busy with something else, the row says so.
    """
    table = [list(columns)]
    table += [[str(row["shape"].get(column, "")) for column in columns] for row in rows]
    if any(row.get("is_busy") for row in rows):
        table = [[""] + table[0]] + [["BUSY" if row.get("is_busy") else ""] + cells
                                     for row, cells in zip(rows, table[1:])]
    widths = [max(map(len, cells)) for cells in zip(*table)]
    return ["  ".join(w.rjust(width) for w, width in zip(cells, widths)) for cells in table]


def heading_of(run: Run) -> str:
    """What stands above the labels of lines_of(run)."""
    return "" if len(run["rows"]) > MOST_LINES else _aligned(run["rows"], columns_of(run))[0]


# ---- Drawing -------------------------------------------------------------------------------------


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise PlotError(f"matplotlib is needed for pictures: {error}; "
                        "`python3 -m pip install matplotlib`") from None


def require() -> None:
    """Raise PlotError, which says how to get it, where matplotlib cannot be imported."""
    _matplotlib("figure")


def _figure(height_inches: float) -> Any:
    return _matplotlib("figure").Figure(figsize=(WIDTH_INCHES, height_inches),
                                        layout="constrained", dpi=150)


def _styles(run: Run) -> dict[str, Style]:
    """quern is black, its other entries hollow; the peers take the colours in turn."""
    styles: dict[str, Style] = {}
    peers = 0
    ours = 0
    roles = {entry["name"]: entry["role"] for entry in entries_of(run)}
    for name in names_of(run):
        if roles[name] != "peer":
            styles[name] = Style("black", ("*", "o", "s")[min(ours, 2)], ours == 0)
            ours += 1
        else:
            turn = peers % len(COLOURS)
            styles[name] = Style(COLOURS[turn], MARKERS[turn], peers < len(COLOURS))
            peers += 1
    return styles


def _face(style: Style) -> str:
    return style.colour if style.is_filled else "white"


def _title_of(run: Run) -> str:
    return plain(f"{run.get('family', '')} {', '.join(dtypes_of(run))} on {device_name(run)}")


def device_name(run: Run) -> str:
    """The device as the run's machine facts name it, else as it was asked for."""
    return str(run.get("machine", {}).get("name") or run.get("device", "?"))


def caption_of(run: Run) -> str:
    """One line: date, device, versions of the peers."""
    return "; ".join([str(run.get("date", "")), device_name(run), *versions_of(run)])


def _draw_caption(figure: Any, run: Run) -> None:
    text = plain(textwrap.fill(caption_of(run), 160))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color="#555555")


def _write(figure: Any, path: Any, kind: str | None = None) -> None:
    try:
        figure.savefig(path, format=kind)
    except OSError as error:
        raise PlotError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise PlotError(f"{path}: {error}") from error


# ---- The ratio by shape --------------------------------------------------------------------------


def ratio_height(run: Run) -> float:
    """Inches that the ratio picture needs."""
    lines = lines_of(run)
    peers = max([len(line.marks) for line in lines] or [1])
    each = max(0.17, 0.045 * peers + (0.16 if len(run["rows"]) > MOST_LINES else 0.04))
    return 2.35 + each * len(lines)


def _draw_ratios(axes: Any, run: Run) -> None:
    lines = lines_of(run)
    against = compared_of(run)
    styles = _styles(run)
    _ratio_axis(axes, lines)
    for turn, name in enumerate(against):
        shift = (turn - (len(against) - 1) / 2) * min(0.8 / len(against), 0.26)
        _draw_peer(axes, lines, name, styles[name], shift)
    axes.annotate(plain(heading_of(run)), (0, 1), (-3.5, 4), xycoords="axes fraction", ha="right",
                  textcoords="offset points", fontsize=7.5, family="monospace", weight="bold")
    axes.set_title(f"{_title_of(run)}, {count_of(len(run['rows']), 'shape')}", fontsize=11,
                   loc="left", pad=12 + 13 * math.ceil(len(against) / LEGEND_COLUMNS))
    axes.legend([_handle(styles[name]) for name in against], _ratio_legend(run), fontsize=8,
                loc="lower left", bbox_to_anchor=(0, 1), ncol=LEGEND_COLUMNS, frameon=False,
                borderaxespad=0.3, handletextpad=0.3, columnspacing=1.5)
    axes.set_xlabel(_ratio_axis_text(run), fontsize=9)


def _handle(style: Style) -> Any:
    """A mark of the legend."""
    line = _matplotlib("lines").Line2D
    return line([], [], linestyle="", marker=style.marker, color=style.colour,
                markerfacecolor=_face(style), markersize=6)


def _ratio_legend(run: Run) -> list[str]:
    """Everyone's name, whom it is against where that is not quern; the run's own means of peers."""
    means = {mean["peer"]: mean for mean in run.get("means", []) if mean["group"] == "all"}
    texts = []
    for name, against in compared_of(run).items():
        text = name if against == main_of(run) else f"{name}, against {against}"
        if name in means:
            text += f": mean {means[name]['geomean']:.2f}, worst {means[name]['worst']:.2f}"
        texts.append(plain(text))
    return texts


def _ratio_axis_text(run: Run) -> str:
    """What is drawn, and in which direction quern is the faster one."""
    ours = main_of(run)
    others = " or ".join(name for name in dict.fromkeys(compared_of(run).values()) if name != ours)
    if others:
        ours = plain(f"{ours} ({others} where the legend says so)")
    marks = "strokes: single shapes, marks: geometric means"
    return (f"time of the peer / time of {ours}, logarithmic\nright of 1 quern is faster; "
            + (marks if len(run["rows"]) > MOST_LINES else "bars: MAD"))


def _draw_peer(axes: Any, lines: Sequence[Line], name: str, style: Style, shift: float) -> None:
    """The marks of one peer on its lines, moved by `shift` of a line so that none hides another."""
    placed = [(at + shift, line.marks[name]) for at, line in enumerate(lines) if name in line.marks]
    cloud = [(ratio, at) for at, mark in placed if len(mark.ratios) > 1 for ratio in mark.ratios]
    if cloud:
        axes.plot(*zip(*cloud), linestyle="", marker="|", markersize=5, alpha=0.35,
                  color=style.colour, zorder=2, rasterized=True)
    means = [mark.mean for _, mark in placed]
    spreads = [min(mark.mad, 0.95 * mark.mean) for _, mark in placed]
    axes.errorbar(means, [at for at, _ in placed], xerr=spreads, linestyle="", marker=style.marker,
                  markersize=4.5 if not cloud else 6.5, color=style.colour, elinewidth=1,
                  markerfacecolor=_face(style), markeredgewidth=0.8,
                  markeredgecolor="white" if cloud and style.is_filled else style.colour, zorder=3)


def _ratio_axis(axes: Any, lines: Sequence[Line]) -> None:
    """Logarithmic ratios along x, lines downward, a rule where the group changes."""
    marks = [mark for line in lines for mark in line.marks.values()]
    low = min([0.93] + [min(mark.ratios) - min(mark.mad, 0.5 * mark.mean) for mark in marks]) / 1.04
    high = max([1.07] + [max(mark.ratios) + mark.mad for mark in marks]) * 1.04
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = _ratio_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(lines)), [plain(line.label) for line in lines], fontsize=7.5,
                    family="monospace")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axvspan(low, 1, color=SHADE, zorder=0)
    axes.axvline(1, color="black", linewidth=1.1, zorder=1)
    for at in range(1, len(lines)):
        is_new = lines[at].group != lines[at - 1].group
        axes.axhline(at - 0.5, color="#999999" if is_new else "#E4E4E4", linewidth=0.5, zorder=1)


def _ratio_ticks(low: float, high: float) -> list[float]:
    """The finest list of ticks that still leaves room for their labels."""
    room = 14
    for ticks in RATIO_TICKS:
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= room and ticks[0] <= low * 1.6 and high <= ticks[-1] * 1.6:
            return inside
    return _decade_ticks(low, high)


# ---- The roofline --------------------------------------------------------------------------------


def tera(row: Row, entry: Entry) -> float:
    """TFLOPS."""
    return float(row["flops"] / entry["us"] * 1e-6)


def _draw_roofline(axes: Any, run: Run) -> None:
    styles = _styles(run)
    names = names_of(run)
    axes.set_xscale("log")
    axes.set_yscale("log")
    levels = _ceilings(run)
    _set_limits(axes, run, levels)
    for turn, name in reversed(list(enumerate(names))):
        _draw_spots(axes, run, name, styles[name], 1 + 0.015 * (turn - len(names) / 2))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        ticks = _decade_ticks(*axis.get_view_interval())
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.tick_params(labelsize=9)
    axes.set_xlabel("flops a byte that must be moved, logarithmic", fontsize=9)
    axes.set_ylabel("TFLOPS, logarithmic", fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="lower right", fontsize=8)
    axes.set_title(f"{_title_of(run)}: roofline", fontsize=11, loc="left")
    _draw_ceilings(axes, run, levels)


def _decade_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; twice and five times those, too, where few would be left."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [step * 10.0 ** exponent for exponent in exponents for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _draw_spots(axes: Any, run: Run, name: str, style: Style, shift: float) -> None:
    """One contestant's shapes, moved sideways by the factor `shift` unless it is quern."""
    is_first, are_many = name == main_of(run), len(run["rows"]) > MOST_LINES
    found = [(row["flops"] / row["bytes"] * (1 if is_first else shift), tera(row, entry))
             for row in run["rows"] for entry in row["entries"]
             if entry["name"] == name and is_figure(entry.get("us"))]
    if found:
        size = (9 if is_first else 5) * (0.6 if are_many else 1)
        edge = "white" if style.is_filled and not are_many else style.colour
        axes.plot(*zip(*found), linestyle="", marker=style.marker, color=style.colour,
                  label=plain(name), markerfacecolor=_face(style), markersize=size,
                  markeredgecolor=edge, markeredgewidth=0.5, alpha=0.5 if are_many else 0.9,
                  zorder=4 if is_first else 3, rasterized=are_many)


def _ceilings(run: Run) -> list[tuple[float, str]]:
    """Flops a second and dtypes of each ceiling that was measured, the highest first."""
    found: dict[float, list[str]] = {}
    for dtype in dtypes_of(run) or [""]:
        flops = ceiling_flops(run, dtype)
        if flops is not None:
            found.setdefault(flops, []).append(dtype)
    return [(flops, ", ".join(found[flops])) for flops in sorted(found, reverse=True)]


def _memory_speed(run: Run) -> float | None:
    speed = run.get("roof", {}).get("bytes_per_s")
    return float(speed) if is_figure(speed) else None


def _set_limits(axes: Any, run: Run, levels: Sequence[tuple[float, str]]) -> None:
    """Room for every figure, the whole of each ridge and some of what is right of it."""
    spots = [(row["flops"] / row["bytes"], tera(row, entry)) for row in run["rows"]
             for entry in row["entries"] if is_figure(entry.get("us"))]
    speed = _memory_speed(run)
    ridges = [flops / speed for flops, _ in levels] if speed else []
    xs, ys = zip(*spots)
    axes.set_xlim(min([*xs, *ridges]) / 1.7, max([*xs, *(4 * ridge for ridge in ridges)]) * 1.5)
    axes.set_ylim(min(ys) / 1.8, max([*ys, *(flops * 1e-12 for flops, _ in levels)]) * 2)


def _draw_ceilings(axes: Any, run: Run, levels: Sequence[tuple[float, str]]) -> None:
    """The slope of the memory and a level for each dtype; last of all, for it asks the layout."""
    left, right = axes.get_xlim()
    speed = _memory_speed(run)
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for turn, (flops, dtypes) in enumerate(levels):
        start = flops / speed if speed else left
        axes.plot([start, right], [flops * 1e-12] * 2, color="black", linewidth=1.3, zorder=2)
        has_room = turn == 0 or levels[turn - 1][0] > 1.4 * flops
        axes.annotate(f"{plain(dtypes)} {flops * 1e-12:.3g} TFLOPS, measured".strip(),
                      (right, flops * 1e-12), (-4, 4 if has_room else -4), ha="right",
                      va="bottom" if has_room else "top", textcoords="offset points", fontsize=8,
                      zorder=5, bbox=box)
    if speed:
        _draw_slope(axes, speed, max([flops / speed for flops, _ in levels] or [right]))


def _draw_slope(axes: Any, speed: float, end: float) -> None:
    """The ceiling of the memory up to intensity `end`, its name along the line."""
    start = max(axes.get_xlim()[0], axes.get_ylim()[0] * 1e12 / speed)
    ends = [(x, x * speed * 1e-12) for x in (start, end)]
    axes.plot(*zip(*ends), color="black", linewidth=1.3, zorder=2)
    amount = f"{speed * 1e-12:.3g} TB/s" if speed >= 1e12 else f"{speed * 1e-9:.3g} GB/s"
    middle = math.sqrt(start * end)
    name = axes.annotate(f"memory {amount}, measured", (middle, middle * speed * 1e-12), (-3, 3),
                         ha="center", va="bottom", rotation_mode="anchor", fontsize=8,
                         textcoords="offset points")
    axes.figure.draw_without_rendering()
    (x0, y0), (x1, y1) = axes.transData.transform(ends)
    name.set_rotation(math.degrees(math.atan2(y1 - y0, x1 - x0)))


# ---- What others call ----------------------------------------------------------------------------


def _check(run: Run) -> None:
    if not any(is_figure(entry.get("us")) for entry in entries_of(run)):
        raise PlotError("run has no times: nothing to draw")


def ratio_plot(run: Run, path: Any, kind: str | None = None) -> None:
    """Write the ratio by shape to `path`, a file's name or a binary stream.

    `kind`: "png", "svg", "pdf"; by the name's ending where it is None. Raises PlotError.
    """
    _check(run)
    if not compared_of(run):
        raise PlotError("run has no ratios: nobody but quern took part")
    figure = _figure(ratio_height(run))
    _draw_caption(figure, run)
    _draw_ratios(figure.add_subplot(), run)
    _write(figure, path, kind)


def roofline_plot(run: Run, path: Any, kind: str | None = None) -> None:
    """Write the roofline to `path`, as ratio_plot() does. Raises PlotError."""
    _check(run)
    figure = _figure(6.3)
    _draw_caption(figure, run)
    _draw_roofline(figure.add_subplot(), run)
    _write(figure, path, kind)


def plot(run: Run, path: Any, kind: str | None = None) -> None:
    """Write both pictures, one above the other, to `path`, as ratio_plot() does.

    Of a run without any ratio, where nobody but quern took part, the roofline alone.
    """
    if not compared_of(run):
        roofline_plot(run, path, kind)
        return
    _check(run)
    heights = ratio_height(run), 6.0
    figure = _figure(sum(heights))
    _draw_caption(figure, run)
    above, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": heights})
    _draw_ratios(above, run)
    _draw_roofline(below, run)
    _write(figure, path, kind)
