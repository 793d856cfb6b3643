"""A case's outcome as one row of the run's JSON object.

    {"shape": params, "label", "groups", "sets", "flops", "bytes", "roof_us", "rounds", "dropped",
     "noise", "is_busy", "clocks", "left_out", "is_ours_lost", "tune_s", "dtype",
     "entries": [{"name", "role", "detail", "first_s", "first_how", "us", "mad_us", "of_roof",
                  "against", "ratio", "ratio_mad", "rel_err", "row_err", "allowed"}]}

Ours comes first. A ratio is the entry's time over that of `against`, by round: the one of ours
that the contestant names; both are null where that one did not play. noise: the greatest share of a
round that others had.

roof_us, the greater of flops and bytes over what the machine was measured to do, and of_roof are
put in by against_roof(), since the roof may rise while a run goes on; null where it is not known.
Where a reader played, its rate in these very rounds stands for the memory's.
"""
from __future__ import annotations

from typing import Any

from harness.contest import ENOUGH, QUIET, Case, Outcome, Player
from harness.figures import mad, median, ratios

Row = dict[str, Any]


def of_case(case: Case, outcome: Outcome, groups: list[str]) -> Row:
    """The row, its clocks and tune_s still to be filled in; no entries where nobody was left."""
    readers = [player for player in outcome.players if player.contestant.role == "reader"]
    players = [player for player in outcome.players if player not in readers]
    return {
        "shape": case.params, "label": case.label, "groups": groups, "sets": len(case.sets),
        "flops": case.flops, "bytes": case.bytes,
        "roof_us": None, "read_bytes_per_s": read_rate(case, readers),
        "entries": [entry(player, base_of(player, players), case.tolerance)
                    for player in players],
        "rounds": len(outcome.noise), "dropped": outcome.dropped,
        "noise": max(outcome.noise, default=0.0), "is_busy": is_busy(outcome.noise),
        "left_out": outcome.left_out, "is_ours_lost": outcome.is_ours_lost, "clocks": {},
        "tune_s": 0.0, "dtype": case.dtype,
    }


def is_busy(noise: list[float]) -> bool:
    """Whether disturbed rounds had to be kept, since too few were quiet."""
    quiet = sum(share <= QUIET for share in noise)
    return quiet < min(ENOUGH, len(noise))


def read_rate(case: Case, readers: list[Player]) -> float | None:
    """Bytes a second of the reader, which reads one of case.reads a call."""
    for reader in readers:
        if reader.seconds:
            return float(case.reads[0].nbytes / median(reader.seconds))
    return None


def against_roof(row: Row, roof: dict[str, Any]) -> None:
    """Put in what the shape takes at the machine's limits, and everyone's share of them."""
    flops_per_s = roof.get("flops", {}).get(row["dtype"])
    bytes_per_s = row["read_bytes_per_s"] or roof.get("bytes_per_s")
    if flops_per_s and bytes_per_s:
        row["roof_us"] = max(row["flops"] / flops_per_s, row["bytes"] / bytes_per_s) * 1e6
        for each in row["entries"]:
            each["of_roof"] = row["roof_us"] / each["us"]


def base_of(player: Player, players: list[Player]) -> Player | None:
    """Whom of ours an entry is compared with; None where that one does not play."""
    for other in players:
        if other.contestant.role == "ours" and other.contestant.name == player.contestant.against:
            return other
    return None


def entry(player: Player, base: Player | None, allowed: float) -> Row:
    """One contestant's figures."""
    seconds = median(player.seconds)
    by_round = ratios(player.seconds, base.seconds) if base else []
    return {
        "name": player.contestant.name, "role": player.contestant.role,
        "detail": player.contestant.detail, "first_s": player.contestant.first_s,
        "first_how": player.contestant.first_how,
        "us": seconds * 1e6, "mad_us": mad(player.seconds) * 1e6,
        "of_roof": None,
        "against": base.contestant.name if base else None,
        "ratio": median(by_round) if base else None,
        "ratio_mad": mad(by_round) if base else None,
        "rel_err": player.errors.whole, "row_err": player.errors.row, "allowed": allowed,
    }
