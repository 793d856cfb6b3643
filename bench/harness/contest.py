"""One shape by several contestants: the types, the check, the rounds.

    adapter (peers/gemm.py) ---> Case: params, sets of arrays, reference
    peer (peers/openblas.py) --> entries: [[Contestant, alternative, ...], ...]

    1. check    every alternative on the first and the last set, its output poisoned before;
                what fails or is wrong is left out, with a line
    2. screen   the fastest alternative of an entry plays for it
    3. warm     everyone, until calls take the same time
    4. rounds   A B C, C B A, ...: one turn each. Rounds in which others had more than QUIET of
                the machine are dropped if ENOUGH quiet ones remain, and waited out if not

Nothing here knows a device or a family: a Clock times turns (clock_cpu.py, clock_cuda.py), a Case
knows its own reference. It does not choose shapes, compute ratios (figures.py, rows.py) or print.
"""
from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Protocol

QUIET = 0.04  # share of the machine in others' hands: above it, a round is disturbed
ENOUGH = 5  # quiet rounds that make a result
FEWEST = 3  # rounds, however long they take
ROW = 8  # times a case's tolerance: how far a single row of an output may be off

Say = Callable[[str], None]


class Unavailable(Exception):
    """A peer that is not here. The text says why; printed as `peer NAME skipped: text`."""


# ---- Types ----------------------------------------------------------------------------------


@dataclass
class ArraySet:
    """The arrays of one call: NumPy on the CPU (bf16 as uint16 bits), torch tensors on CUDA.

    Their names, shapes and strides are the family's: its adapter says them. arrays["q"] is any of
    them by its name.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]  # floating-point, so that they can be poisoned
    inouts: dict[str, Any] = field(default_factory=dict)  # a call reads and writes them in place

    def __getitem__(self, name: str) -> Any:
        for arrays in (self.inputs, self.outputs, self.inouts):
            if name in arrays:
                return arrays[name]
        raise KeyError(name)


class Errors(NamedTuple):
    """How far outputs are off, both relative; inf or NaN where they have any."""

    whole: float  # of an output: the norm of what is wrong over the norm of what is right
    row: float  # of its worst row: a wrong tile of a large output hides in the norm


@dataclass
class Case:
    """One shape on one device. Made by a family's adapter, shared by its contestants."""

    label: str  # "512 4096 4096 bf16"
    params: dict[str, int | str]  # the shape, by the family's columns
    device: str  # "cpu", "cuda:0"
    threads: int  # of the CPU's contestants
    flops: float  # the least that a call must do
    bytes: float  # the least that a call must read and write
    sets: list[ArraySet]  # rotated; random contents, together more than the last-level cache
    tolerance: float  # greatest relative error of right outputs
    compare: Callable[[int, int], Errors] = field(repr=False)
    # outputs and inouts of a set, after so many calls since restore(): the adapter's
    restore: Callable[[int], None] = field(repr=False, default=lambda index: None)
    # a set's inouts as they were; only of ends_of() the case
    dtype: str = "f32"  # of its multiplications: whose flops are its roof
    reads: list[Any] = field(default_factory=list)
    # of each set the array that a call mostly reads; [] where reading is not what bounds it
    peer_tolerance: float = 0.0  # a peer up to it plays, and its error is said; 0: tolerance

    def limit(self, contestant: Contestant) -> float:
        """The error beyond which it is left out."""
        is_peer = contestant.role == "peer"
        return max(self.tolerance, self.peer_tolerance if is_peer else 0.0)


class Contestant:
    """One way of computing a case. Every contestant writes into case.sets[index].outputs."""

    name: str = ""  # "quern", "openblas", "onednn prepacked"
    detail: str = ""  # what it chose: "algorithm 3 of 8", "Cooperlake"
    role: str = "peer"  # "ours", "untuned"; "reader": its rate is the memory's
    against: str = "quern"  # whom of ours it is compared with, by name
    first_s = math.nan  # seconds until it could be called: compiling, its own tuning
    first_how = ""  # what is in them, or spared: "3.10 of them tuning"
    computes = True  # False: something else of the same work, whose outputs are not looked at
    is_in_place = True  # a call goes on from where the last one left the inouts, if there are any

    def run(self, index: int) -> None:
        """Compute set `index`, on the device's current stream. May raise what its library says."""
        raise NotImplementedError

    def deliver(self, index: int) -> None:
        """Bring what run() computed into the outputs, where it leaves it elsewhere: never timed."""

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

    def warm(self, contestant: Contestant) -> None:
        """Until calls take the same time; once. Raises Wrong where what would be timed is wrong."""

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
    errors: Errors  # the greatest found by the check
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
    is_ours_lost: bool = False  # one of ours is among them


# ---- 1. Check -------------------------------------------------------------------------------


class Wrong(Exception):
    """A contestant whose outputs are not what the reference says."""


def poison(arrays: ArraySet) -> None:
    """Fill the outputs with NaN (integers that hold bf16: with its bits)."""
    for output in arrays.outputs.values():
        if hasattr(output, "fill_"):
            output.fill_(math.nan)
        else:
            output.view("u1").fill(255)


def ends_of(case: Case) -> list[int]:
    """The sets that are checked: the first and the last."""
    return sorted({0, len(case.sets) - 1})


def check(case: Case, contestant: Contestant, compute: Callable[[], None], calls: int = 1
          ) -> Errors:
    """The greatest errors after compute(), which makes so many calls for each of ends_of().

    Before, outputs are poisoned and inouts are as they were made. Raises Wrong.
    """
    for index in ends_of(case):
        poison(case.sets[index])
        case.restore(index)
    compute()
    worst = Errors(0.0, 0.0)
    for index in ends_of(case):
        contestant.deliver(index)
        errors = case.compare(index, calls if contestant.is_in_place else 1)
        require(errors, case.limit(contestant))
        worst = Errors(*map(max, worst, errors))
    return worst


def require(errors: Errors, limit: float) -> None:
    """Raises Wrong where an error is beyond its limit, or no number."""
    if not errors.whole <= limit:
        raise Wrong(f"WRONG, relative error {errors.whole:.2e}, allowed {limit:.2e}")
    if not errors.row <= ROW * limit:
        raise Wrong(f"WRONG, relative error {errors.row:.2e} in a row, allowed {ROW * limit:.2e}")


def reason(failure: Exception) -> str:
    """An exception in one line."""
    text = " ".join(str(failure).split())
    if isinstance(failure, (Wrong, Unavailable)):
        return text
    return f"{type(failure).__name__}: {text}" if text else type(failure).__name__


def leave_out(contestant: Contestant, failure: Exception, outcome: Outcome) -> None:
    """Close the contestant and write down why."""
    detail = f" ({contestant.detail})" if contestant.detail else ""
    outcome.left_out.append(f"{contestant.name}{detail}: {reason(failure)}")
    outcome.is_ours_lost |= contestant.role in ("ours", "untuned")
    shut(contestant, outcome.left_out)


def shut(contestant: Contestant, left_out: list[str]) -> None:
    """Close it; what that raises is said, and ends nothing else."""
    try:
        contestant.close()
    except Exception as failure:
        left_out.append(f"{contestant.name}: close: {reason(failure)}")


def admit(case: Case, contestant: Contestant, outcome: Outcome) -> Player | None:
    """The player, where the contestant runs and is right."""
    def compute() -> None:
        for index in ends_of(case):
            contestant.run(index)

    if not contestant.computes:
        return Player(contestant, Errors(0.0, 0.0))
    try:
        return Player(contestant, check(case, contestant, compute))
    except Exception as failure:  # whatever a peer's library raises: it is said, and it is out
        leave_out(contestant, failure, outcome)
        return None


# ---- 2. Screen, 3. warm ---------------------------------------------------------------------


def screen(players: list[Player], clock: Clock, outcome: Outcome) -> Player | None:
    """The fastest of an entry's alternatives, the others closed; its detail says of how many, and
    what the next one is."""
    timed = []
    for player in players if len(players) > 1 else []:
        try:
            clock.warm(player.contestant)
            timed.append((clock.screen(player.contestant), player))
        except Exception as failure:
            leave_out(player.contestant, failure, outcome)
    if not timed:
        return players[0] if len(players) == 1 else None
    timed.sort(key=lambda pair: pair[0])
    for _, player in timed[1:]:
        shut(player.contestant, outcome.left_out)
    seconds, best = timed[0]
    best.contestant.detail += f", fastest of {len(timed)}"
    if len(timed) > 1:
        after, second = timed[1]
        best.contestant.detail += (f" (next: {second.contestant.detail or '-'}, "
                                   f"{after / seconds:.2f} times as long)")
    return best


def warm(outcome: Outcome, clock: Clock) -> None:
    """Everyone before the rounds; who cannot be timed is left out."""
    for player in list(outcome.players):
        try:
            clock.warm(player.contestant)
        except Exception as failure:
            outcome.players.remove(player)
            leave_out(player.contestant, failure, outcome)


# ---- 4. Rounds ------------------------------------------------------------------------------


class Broken(Exception):
    """A player at `place` that passed the check but fails when it is timed."""

    def __init__(self, place: int, failure: Exception) -> None:
        super().__init__(str(failure))
        self.place, self.failure = place, failure


def play_round(players: list[Player], clock: Clock, is_backwards: bool) -> dict[int, float]:
    """One turn each: seconds by the player's place. Raises Broken for a turn that fails."""
    seconds = {}
    for place in reversed(range(len(players))) if is_backwards else range(len(players)):
        try:
            seconds[place] = clock.turn(players[place].contestant)
        except Exception as failure:
            raise Broken(place, failure) from failure
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
            leave_out(player.contestant, broken.failure, outcome)
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
    """Check, screen, warm and time. The outcome's contestants are still open: close() them after.

    Python's garbage collector rests meanwhile. One thread.
    """
    outcome = Outcome([], [])
    for arrays in case.sets:  # memory that nobody has touched would be the first one's to pay for
        poison(arrays)
    for entry in entries:
        admitted = [admit(case, contestant, outcome) for contestant in entry]
        best = screen([player for player in admitted if player], clock, outcome)
        if best:
            outcome.players.append(best)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        warm(outcome, clock)
        play(outcome, clock, limits)
    finally:
        if was_enabled:
            gc.enable()
    drop_disturbed(outcome)
    return outcome
