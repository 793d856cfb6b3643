"""A function of quern's called by its arguments' names: ours.Call of any family."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import quern

BITS = {"bf16": 2, "e4m3": 1}  # dtypes that NumPy has not, as integers of so many bytes


def seen(array: Any, dtype: str) -> Any:
    """The array as quern takes it: NumPy's integers that hold bf16 or e4m3 are named so."""
    if hasattr(array, "clone") or array.dtype.itemsize != BITS.get(dtype, 0):
        return array
    import quern

    return quern.view(array, dtype)


class NamedCall:
    """One call of a family in a context."""

    def __init__(self, context: quern.Context, family: str, arguments: dict[str, Any]) -> None:
        self._context, self._family, self._arguments = context, family, arguments

    def prepare(self, variant: str | None = None, config: str | None = None) -> quern.Prepared:
        """Of ours.Call."""
        return self._context.prepare(self._family, **self._arguments, variant=variant,
                                     config=config)

    def tune(self, seconds: float, variant: str | None = None) -> quern.TuneResult:
        """Of ours.Call."""
        return self._context.tune(self._family, **self._arguments, variant=variant,
                                  budget=seconds)
