"""One product by several contestants: the types, the check, the rounds.

    adapter (peers/gemm.py) ---> Case: params, sets of arrays, reference
    peer (peers/openblas.py) --> entries: [[Contestant, alternative, ...], ...]

    1. check    every alternative on the first and the last set, its output poisoned before;
                what fails or is wrong is left out, with a line
    2. screen   the fastest alternative of an entry plays for it
    3. rounds   A B C, C B A, ...: one turn each. Rounds in which others had more than QUIET of
                the machine are dropped if ENOUGH quiet ones remain, and waited out if not

Nothing here knows a device or a family: a Clock times turns (clock_cpu.py, clock_cuda.py), a Case
knows its own reference. It does not choose shapes, compute ratios (figures.py, rows.py) or print.
"""
from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Protocol

QUIET = 0.04  # share of the machine in others' hands: above it, a round is disturbed
ENOUGH = 5  # quiet rounds that make a result
FEWEST = 3  # rounds, however long they take

Say = Callable[[str], None]


class Unavailable(Exception):
    """A peer that is not here. The text says why; printed as `peer NAME skipped: text`."""


# ---- Types ----------------------------------------------------------------------------------


@dataclass
class ArraySet:
    """The arrays of one call: NumPy on the CPU (bf16 as uint16 bits), torch tensors on CUDA.

    For gemm: a [m, k], b [n, k], out [m, n], all contiguous, with a leading batch where it is
    over 1.
    """

    a: Any
    b: Any
    out: Any


@dataclass
class Case:
    """One shape on one device. Made by a family's adapter, shared by its contestants."""

    label: str  # "512 4096 4096 bf16"
    params: dict[str, int | str]  # m n k batch dtype
    device: str  # "cpu", "cuda:0"
    threads: int  # of the CPU's contestants
    flops: float  # the least that a call must do
    bytes: float  # the least that a call must read and write
    sets: list[ArraySet]  # rotated; random contents, together more than the last-level cache
    tolerance: float  # greatest relative error of a right output
    compare: Callable[[int, Any], float] = field(repr=False)  # the adapter's, behind error()

    def error(self, index: int, output: Any) -> float:
        """Relative error of a contestant's output for set `index`; inf or NaN where it has any."""
        return self.compare(index, output)


class Contestant:
    """One way of computing a case. Every contestant writes into case.sets[index].out."""

    name: str = ""  # "quern", "openblas", "onednn prepacked"
    detail: str = ""  # what it chose: "algorithm 3 of 8", "Cooperlake"
    role: str = "peer"  # "ours", "untuned"; "reader": computes nothing, so it is not checked

    def run(self, index: int) -> None:
        """Compute set `index`, on the device's current stream. May raise what its library says."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the contestant holds."""


class Peer(Protocol):
    """One library: the object PEER (or one of the list PEERS) of its file."""

    name: str

    def open(self, device: str, threads: int) -> None:
        """Load the library for `device`; raises Unavailable."""

    def version(self) -> str:
        """What was loaded, "OpenBLAS 0.3.21". After open()."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        """Entries, each a list of alternatives of which the fastest plays; [] if it has none."""


class Clock(Protocol):
    """How a contestant's turn is timed on a device. Made for one case."""

    def turn(self, contestant: Contestant) -> float:
        """Seconds a call: one measurement of the case, caches as in use."""

    def screen(self, contestant: Contestant) -> float:
        """Seconds a call, cheaply: to choose among alternatives."""

    def noise(self) -> float:
        """Share of the machine that others had since the last call of noise(), 0..1."""


@dataclass
class Player:
    """The contestant that plays for an entry, and what it did."""

    contestant: Contestant
    error: float  # the greatest found by the check
    seconds: list[float] = field(default_factory=list)  # a round each


@dataclass
class Limits:
    """How long the rounds of a case last."""

    seconds: float  # twice as long where the machine is busy
    rounds: int  # at most


@dataclass
class Outcome:
    """A case's result: samples of the rounds kept, equally many of every player."""

    players: list[Player]
    noise: list[float]  # of the rounds kept: share of the machine that others had
    dropped: int = 0
    left_out: list[str] = field(default_factory=list)  # "NAME (DETAIL): why"


# ---- 1. Check -------------------------------------------------------------------------------


def poison(output: Any) -> None:
    """Fill an array or a tensor with NaN (integers that hold bf16: with its bits)."""
    if hasattr(output, "fill_"):
        output.fill_(math.nan)
    else:
        output.view("u1").fill(255)


def check(case: Case, contestant: Contestant) -> float:
    """The greatest error over the first and the last set; at once the first that is too great."""
    worst = 0.0
    for index in sorted({0, len(case.sets) - 1}):
        poison(case.sets[index].out)
        contestant.run(index)
        error = case.error(index, case.sets[index].out)
        if not error <= case.tolerance:
            return error
        worst = max(worst, error)
    return worst


def leave_out(contestant: Contestant, why: str, left_out: list[str]) -> None:
    """Close the contestant and write down why."""
    detail = f" ({contestant.detail})" if contestant.detail else ""
    left_out.append(f"{contestant.name}{detail}: {why}")
    shut(contestant, left_out)


def shut(contestant: Contestant, left_out: list[str]) -> None:
    """Close it; what that raises is said, and ends nothing else."""
    try:
        contestant.close()
    except Exception as failure:
        left_out.append(f"{contestant.name}: close: {reason(failure)}")


def reason(failure: Exception) -> str:
    """An exception in one line."""
    text = " ".join(str(failure).split())
    return f"{type(failure).__name__}: {text}" if text else type(failure).__name__


def admit(case: Case, contestant: Contestant, left_out: list[str]) -> Player | None:
    """The player, where the contestant runs and is right."""
    if contestant.role == "reader":
        return Player(contestant, 0.0)
    try:
        error = check(case, contestant)
    except Exception as failure:  # whatever a peer's library raises: it is said, and it is out
        leave_out(contestant, reason(failure), left_out)
        return None
    if not error <= case.tolerance:
        why = f"WRONG, relative error {error:.2e}, allowed {case.tolerance:.2e}"
        leave_out(contestant, why, left_out)
        return None
    return Player(contestant, error)


# ---- 2. Screen ------------------------------------------------------------------------------


def screen(players: list[Player], clock: Clock, left_out: list[str]) -> Player | None:
    """The fastest of an entry's alternatives, the others closed; its detail says of how many."""
    timed = []
    for player in players if len(players) > 1 else []:
        try:
            timed.append((clock.screen(player.contestant), player))
        except Exception as failure:
            leave_out(player.contestant, reason(failure), left_out)
    if not timed:
        return players[0] if len(players) == 1 else None
    best = min(timed, key=lambda pair: pair[0])[1]
    for _, player in timed:
        if player is not best:
            shut(player.contestant, left_out)
    best.contestant.detail += f", fastest of {len(timed)}"
    return best


# ---- 3. Rounds ------------------------------------------------------------------------------


class Broken(Exception):
    """A player at `place` that passed the check but cannot be timed."""

    def __init__(self, place: int, why: str) -> None:
        super().__init__(why)
        self.place = place


def play_round(players: list[Player], clock: Clock, is_backwards: bool) -> dict[int, float]:
    """One turn each: seconds by the player's place. Raises Broken for a turn that fails."""
    seconds = {}
    for place in reversed(range(len(players))) if is_backwards else range(len(players)):
        try:
            seconds[place] = clock.turn(players[place].contestant)
        except Exception as failure:
            raise Broken(place, reason(failure)) from failure
    return seconds


def play(outcome: Outcome, clock: Clock, limits: Limits) -> None:
    """Rounds until `limits` are reached; every player gets a time of every round."""
    begin = time.monotonic()
    clock.noise()
    while not is_over(outcome.noise, limits, time.monotonic() - begin) and outcome.players:
        try:
            seconds = play_round(outcome.players, clock, len(outcome.noise) % 2 == 1)
        except Broken as broken:
            player = outcome.players.pop(broken.place)
            leave_out(player.contestant, str(broken), outcome.left_out)
            continue
        outcome.noise.append(clock.noise())
        for place, player in enumerate(outcome.players):
            player.seconds.append(seconds[place])


def is_over(noise: list[float], limits: Limits, elapsed: float) -> bool:
    """Whether there are rounds enough, or no time for more."""
    if len(noise) >= limits.rounds:
        return True
    if elapsed > 2 * limits.seconds:
        return len(noise) >= min(FEWEST, limits.rounds)
    return elapsed > limits.seconds and sum(share <= QUIET for share in noise) >= ENOUGH


def drop_disturbed(outcome: Outcome) -> None:
    """Keep the quiet rounds alone, where there are enough of them."""
    quiet = [place for place, share in enumerate(outcome.noise) if share <= QUIET]
    if len(quiet) < ENOUGH:
        return
    outcome.dropped = len(outcome.noise) - len(quiet)
    outcome.noise = [outcome.noise[place] for place in quiet]
    for player in outcome.players:
        player.seconds = [player.seconds[place] for place in quiet]


def hold(case: Case, entries: list[list[Contestant]], clock: Clock, limits: Limits) -> Outcome:
    """Check, screen and time. The outcome's contestants are still open: close() them after use.

    Python's garbage collector rests meanwhile. One thread.
    """
    outcome = Outcome([], [])
    for arrays in case.sets:  # memory that nobody has touched would be the first one's to pay for
        poison(arrays.out)
    for entry in entries:
        admitted = [admit(case, contestant, outcome.left_out) for contestant in entry]
        best = screen([player for player in admitted if player], clock, outcome.left_out)
        if best:
            outcome.players.append(best)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        play(outcome, clock, limits)
    finally:
        if was_enabled:
            gc.enable()
    drop_disturbed(outcome)
    return outcome
