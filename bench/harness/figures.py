"""Statistics: medians, deviations, ratios taken round by round, means over shapes.

All times in seconds. A ratio is the other's time over ours: above 1, quern is faster.
"""
from __future__ import annotations

import math
from typing import Any, Iterable, Sequence


def median(values: Iterable[float]) -> float:
    """The median; the mean of the middle two where the count is even. NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def mad(values: Sequence[float]) -> float:
    """The median absolute deviation from the median."""
    center = median(values)
    return median(abs(value - center) for value in values)


def ratios(other: Sequence[float], ours: Sequence[float]) -> list[float]:
    """other / ours, each within its round."""
    return [theirs / own for theirs, own in zip(other, ours)]


def geometric_mean(values: Sequence[float]) -> float:
    """NaN of nothing; values > 0."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def means(rows: list[dict[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    """Geometric mean and worst of every peer's ratios, over `groups` of rows and over all.

    A row has "groups" (names), "label", "entries"; entries of ours (role not "peer") count not,
    nor do busy rows while there are others.
    """
    rows = [row for row in rows if not row.get("is_busy")] or rows
    names = dict.fromkeys(e["name"] for r in rows for e in r["entries"] if e["role"] == "peer")
    shown = [group for group in groups if 0 < sum(group in r["groups"] for r in rows) < len(rows)]
    found = [mean_of(rows, name, group) for name in names for group in [*shown, "all"]]
    return [mean for mean in found if mean["count"]]


def mean_of(rows: list[dict[str, Any]], name: str, group: str) -> dict[str, Any]:
    """One line of means(): `count` rows have an entry of that name; the worst is the least."""
    chosen = [(entry["ratio"], row["label"]) for row in rows for entry in row["entries"]
              if entry["name"] == name and entry["ratio"] is not None
              and (group == "all" or group in row["groups"])]
    worst, label = min(chosen, default=(math.nan, ""))
    return {"peer": name, "group": group, "count": len(chosen),
            "geomean": geometric_mean([ratio for ratio, _ in chosen]),
            "worst": worst, "worst_label": label}


def tuning(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What tuning gains: untuned time over tuned, and the longest tuning of a shape; or {}."""
    chosen = [(entry["ratio"], row["label"]) for row in rows for entry in row["entries"]
              if entry["role"] == "untuned" and entry["ratio"] is not None]
    if not chosen:
        return {}
    worst, label = max(chosen)
    return {"count": len(chosen), "geomean": geometric_mean([ratio for ratio, _ in chosen]),
            "worst": worst, "worst_label": label,
            "longest_s": max(row.get("tune_s", 0.0) for row in rows)}
