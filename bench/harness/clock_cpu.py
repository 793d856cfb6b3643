"""How a turn is timed on the CPU.

    warm     once: all sets, and until two calls in succession take the same time
    settle   until no team of threads spins any more
    one call that is not counted, where calls are short
    up to 16 calls, one set after another: their median

Everyone goes on with the set after the last that anyone used, so that between two uses of one all
others were used. Calls below 50 us are timed in batches of that length. With one thread the clock
is the process's own time (all of its threads: a helper's work counts), which a busy machine hardly
changes; else the wall. The call from Python (about a microsecond) is inside, for everyone.
"""
from __future__ import annotations

import os
import resource
import time

from harness.contest import Case, Contestant
from harness.figures import median

BATCH_S = 50e-6
TURN_S = 0.04  # of counted calls, at most 16 of them
SHORT_S = 0.02  # a longer call warms itself
STEADY = 0.05  # between two calls in succession, when a contestant counts as warm
WARMING_S = 1.0  # at most


class Clock:
    """The clock of one case. Not to be shared by threads."""

    def __init__(self, case: Case) -> None:
        self._sets = len(case.sets)
        self._is_own_time = case.threads == 1
        self._clock = time.CLOCK_PROCESS_CPUTIME_ID if self._is_own_time else time.CLOCK_MONOTONIC
        self._next = 0  # one for all: who is next must not find the set that was just used
        self._batch: dict[Contestant, tuple[int, float]] = {}
        self._before = usage()

    def warm(self, contestant: Contestant) -> None:
        """Every set once, on until two calls in succession agree, at most WARMING_S. Finds how many
        calls last BATCH_S. Once a contestant."""
        if contestant in self._batch:
            return
        self._settle()
        end, done, calls, before = time.monotonic() + WARMING_S, 0, 1, 0.0
        while time.monotonic() < end or not before:
            now = self._time(contestant, calls)
            done += calls
            is_short = calls * now < BATCH_S
            if not is_short and done >= self._sets and abs(now - before) <= STEADY * before:
                break
            before = now
            calls *= 2 if is_short else 1
        self._batch[contestant] = calls, now

    def turn(self, contestant: Contestant) -> float:
        """Seconds a call."""
        self.warm(contestant)
        self._settle()
        batch, call_s = self._batch[contestant]
        count = min(16, max(1, int(TURN_S / (call_s * batch))))
        if call_s < SHORT_S:
            self._time(contestant, 1)
        call_s = median([self._time(contestant, batch) for _ in range(count)])
        self._batch[contestant] = batch, call_s
        return call_s

    def screen(self, contestant: Contestant) -> float:
        """The least of two turns."""
        return min(self.turn(contestant), self.turn(contestant))

    def noise(self) -> float:
        """Share of the processors that others had; 0 where only this process's time counts."""
        before, self._before = self._before, usage()
        if self._is_own_time:
            return 0.0
        wall, own, machine = (now - then for now, then in zip(self._before, before))
        cpus = os.sysconf("SC_NPROCESSORS_ONLN")
        return min(1.0, max(0.0, machine - own) / (wall * cpus)) if wall > 0 else 0.0

    def _settle(self) -> None:
        """Wait until this process is idle, at most 0.3 s.

        An idle team of OpenBLAS or libgomp burns a core for a while after each call, which the
        next one to be timed would pay for.
        """
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            wall, busy = time.monotonic(), time.process_time()
            time.sleep(0.002)
            if time.process_time() - busy < 0.05 * (time.monotonic() - wall):
                return

    def _time(self, contestant: Contestant, calls: int) -> float:
        """Seconds a call, of `calls` that walk on over the sets."""
        run, sets, index = contestant.run, self._sets, self._next
        begin = time.clock_gettime(self._clock)
        for _ in range(calls):
            run(index)
            index = index + 1 if index + 1 < sets else 0
        seconds = time.clock_gettime(self._clock) - begin
        self._next = index
        return seconds / calls


def usage() -> tuple[float, float, float]:
    """Seconds: the wall's, of this process and its children, of all processors and the host's."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = time.process_time() + children.ru_utime + children.ru_stime
    return time.monotonic(), own, machine_seconds() or own


def machine_seconds() -> float:
    """Processor time of everyone, what the hypervisor took included; 0 where it is not told."""
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
