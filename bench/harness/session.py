"""A run: the shapes one after another, everything that is known about them in one object.

    open_peers   who is here, and who is not and why
    Session      a shape: its case, our contestants, the peers' entries, the rounds, its row

It prints through `say` and does not know options, files or formats.
"""
from __future__ import annotations

import gc
import importlib
import re
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness import machine, rows
from harness.arrays import Arrays, CudaArrays, HostArrays
from harness.contest import (Case, Clock, Contestant, Limits, Outcome, Peer, Say, Unavailable, hold,
                             reason, shut)
from harness.roof import CpuRoof
from harness.shapes import BadOption

if TYPE_CHECKING:
    import quern


def open_peers(adapter: ModuleType, names: list[str], device: str,
               threads: int) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can be used on `device`, and of the others name -> why."""
    modules = adapter.PEERS[device.partition(":")[0]]
    found: list[Peer] = []
    skipped = {}
    for name in names:
        try:
            peer = find_peer(modules[name], name)
            peer.open(device, threads)
            peer.version()
            found.append(peer)
        except Unavailable as failure:
            skipped[name] = str(failure)
        except Exception as failure:  # whatever its library raises: it is said, and it is out
            skipped[name] = reason(failure)
    return found, skipped


def find_peer(module: str, name: str) -> Peer:
    """The peer of that name in bench/peers/<module>.py."""
    loaded = importlib.import_module(f"peers.{module}")
    peers: list[Peer] = getattr(loaded, "PEERS", None) or [loaded.PEER]
    for peer in peers:
        if peer.name == name:
            return peer
    raise Unavailable(f"peers/{module}.py has no peer of this name")


def arrays_for(device: str) -> Arrays:
    """What makes a case's arrays on `device`."""
    return HostArrays() if device == "cpu" else CudaArrays(device)


def clock_for(case: Case) -> Clock:
    """The case's clock, by its device."""
    if case.device == "cpu":
        from harness import clock_cpu

        return clock_cpu.Clock(case)
    from harness import clock_cuda

    clock: Clock = clock_cuda.Clock(case)
    return clock


def refuse_choice(failure: Exception) -> None:
    """Raises BadOption where it is --variant or --config that quern refuses."""
    text = re.sub(r"^(variant|config)[= ]", r"--\1 ", str(failure))
    if text.startswith("--") and getattr(failure, "status", "") == "INVALID":
        raise BadOption(text) from None


@dataclass
class Session:
    """What all shapes of a run share."""

    adapter: ModuleType
    device: str
    threads: int
    tuned: quern.Context
    untuned: quern.Context
    peers: list[Peer]
    limits: Limits
    tune_s: float  # a shape; 0: untuned only
    choice: dict[str, str]  # ours: "variant", "config", as given
    say: Say
    cpu_roof: CpuRoof | None = None
    roof: dict[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(init=False)
    has_measured: bool = False

    def __post_init__(self) -> None:
        self.arrays = arrays_for(self.device)

    def measure_roof(self) -> None:
        """Fill in `roof`, once."""
        if self.device != "cpu":
            from harness import clock_cuda

            self.roof.update(clock_cuda.measure_roof(self.device))
        elif self.cpu_roof:
            self.roof.update(self.cpu_roof.measure())

    def shape(self, params: dict[str, int | str]) -> dict[str, Any] | None:
        """A shape's row; None where it does not fit into memory."""
        try:
            case = self.adapter.make_case(params, self.device, self.threads, self.arrays)
        except MemoryError as failure:
            self.say(f"    skipped: {failure}")
            return None
        begun = Outcome([], [])
        entries, tune_s = self.entries(case, begun)
        outcome = hold(case, entries, clock_for(case), self.limits)
        outcome.left_out[:0] = begun.left_out
        outcome.is_ours_lost |= begun.is_ours_lost
        self.has_measured = True
        row = rows.of_case(case, outcome, self.adapter.groups(params))
        row.update(clocks=self.clocks(), tune_s=tune_s)
        for player in outcome.players:
            shut(player.contestant, outcome.left_out)
        if self.cpu_roof:
            self.roof.update(self.cpu_roof.measure())
        del case, entries, outcome
        gc.collect()
        return row

    def entries(self, case: Case, outcome: Outcome) -> tuple[list[list[Contestant]], float]:
        """Ours, the peers', the reader; and the seconds that tuning took. Who cannot enter is in
        the outcome. Raises BadOption for a choice that quern does not know, before anything was
        measured."""
        entries: list[list[Contestant]] = []
        tune_s = 0.0
        try:
            ours, tune_s = self.adapter.ours(case, self.tuned, self.untuned, self.tune_s,
                                             self.choice, self.say)
            entries += [[contestant] for contestant in ours]
        except Exception as failure:  # quern.Error, the device's own, a package that does not fit
            if self.choice and not self.has_measured:
                refuse_choice(failure)
            outcome.left_out.append(f"quern: {reason(failure)}")
            outcome.is_ours_lost = True
        for peer in self.peers:
            try:
                entries += [entry for entry in peer.enter(case) if entry]
            except Exception as failure:  # whatever its library raises: it is said, and it is out
                outcome.left_out.append(f"{peer.name}: {reason(failure)}")
        if self.cpu_roof:
            entries += self.cpu_roof.reader(case)
        return entries, tune_s

    def clocks(self) -> dict[str, Any]:
        """The device's, right after the rounds."""
        if self.device == "cpu":
            mhz = machine.cpu_mhz()
            return {"cpu_mhz": mhz} if mhz else {}
        from harness import clock_cuda

        return dict(clock_cuda.clocks(self.device))
