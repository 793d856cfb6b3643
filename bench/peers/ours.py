"""quern as a contestant, whatever the family: prepared calls, one a set.

An adapter says how a set is called by objects of the protocol Call (gemm.GemmCall).
"""
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Callable, Protocol, Sequence

from harness.contest import Case, Contestant, Say

if TYPE_CHECKING:
    import quern


class Call(Protocol):
    """The arrays and parameters of one call in one context."""

    def prepare(self, variant: str | None = None, config: str | None = None) -> quern.Prepared:
        """As quern.prepare()."""

    def tune(self, seconds: float, variant: str | None = None) -> quern.TuneResult:
        """As quern.tune()."""


CallOf = Callable[[Case, "quern.Context", int], Call]  # of a set


class Quern(Contestant):
    """quern: one prepared call a set, which was tuned for so many seconds. Raises quern.Error."""

    def __init__(self, name: str, role: str, calls: Sequence[Call], choice: dict[str, str],
                 tune_s: float = 0.0) -> None:
        self.name, self.role = name, role
        self.against = name if role == "ours" else "quern"
        begin = time.monotonic()
        first = calls[0].prepare(**choice)
        self.first_s = tune_s + time.monotonic() - begin
        self.first_how = f"{tune_s:.2f} of them tuning" if tune_s else ""
        self._calls = [first, *(call.prepare(**choice) for call in calls[1:])]
        self.detail = f"{first.config_from}: {first.variant} {first.config}".rstrip()

    def run(self, index: int) -> None:
        self._calls[index]()

    def close(self) -> None:
        self._calls = []


def tune(call: Call, seconds: float, variant: str | None, say: Say) -> float:
    """Tune the call's bucket; the seconds that it took. Raises quern.Error."""
    result = call.tune(seconds, variant)
    say(f"    tuned in {result.seconds:.1f} s: {result.candidates} candidates, "
        f"{result.failed} failed, {result.best.variant} {result.best.config}")
    return float(result.seconds)


def plain(case: Case, call_of: CallOf, contexts: tuple[quern.Context, quern.Context],
          seconds: float, choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """`quern` in the first context, tuned there, and `quern untuned` in the second; and the seconds
    of tuning.

    `choice`: variant, config, or nothing. `seconds` 0 tunes nothing, and the second does not play.
    Raises quern.Error.
    """
    def calls(context: quern.Context) -> list[Call]:
        return [call_of(case, context, index) for index in range(len(case.sets))]

    tuned = calls(contexts[0])
    if seconds <= 0:
        return [Quern("quern", "ours", tuned, choice)], 0.0
    kept = {name: value for name, value in choice.items() if name != "config"}
    tune_s = tune(tuned[0], seconds, choice.get("variant"), say)
    return [Quern("quern", "ours", tuned, choice, tune_s),
            Quern("quern untuned", "untuned", calls(contexts[1]), kept)], tune_s
