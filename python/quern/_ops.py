"""Functions of _families as operators of PyTorch, made from their descriptions.

    torch.ops.quern.NAME       makes its outputs and changes nothing; without the arguments that it
                               would write to. Of several outputs the last has no elements where
                               it is not asked for
    torch.ops.quern.NAME_out   writes to its outputs and to what else is given to be written to
                               (states, caches); returns nothing

Names are those of quern.kda_prefill() and the others. Shapes and dtypes are inferred from fake
tensors by the very functions that check a call (_families), with symbolic sizes.

What is not here: the tables of operators (_kda_ops.py, _attention_ops.py); what torch_ops.py says
is not there.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch

from . import _forms, _torch
from ._arrays import Array
from ._call import options_of, run
from ._errors import invalid
from ._plan import Function


def _check_nothing(given: Dict[str, Any]) -> None:
    """Of NAME_out that may go without any output but the first."""


class Operator(NamedTuple):
    """What a pair of operators is made from. Of an argument with "?" there may be none."""

    function: Function
    inputs: str
    others: str  # further ones that only NAME_out reads
    written: str  # what NAME_out writes to
    like: str = ""  # the input that out is shaped like, for those that make it while tracing
    is_pure: bool = True  # there is a NAME, too
    check_out: Callable[[Dict[str, Any]], None] = _check_nothing  # of NAME_out's arguments


def names(words: str) -> Tuple[str, ...]:
    """The arguments of such a text."""
    return tuple(words.replace("?", "").split())


# Those that have no default are asked for first, then those that are written, then the rest.
def _written_first(operator: Operator) -> List[str]:
    words = [*operator.inputs.split(), *operator.others.split()]
    written = [word.replace("?", "!?") if "?" in word else word + "!"
               for word in operator.written.split()]
    every = words + written
    return [word for word in every if "?" not in word] + [word for word in every if "?" in word]


def _argument(word: str) -> str:
    """"Tensor(states!)? states=None" of "states!?"."""
    name = word.rstrip("?!")
    alias = f"({name}!)" if "!" in word else ""
    return f"Tensor{alias}? {name}=None" if "?" in word else f"Tensor{alias} {name}"


# What None stands for; of others a float, or what counts.
_NULLABLE = {"activation": "str?", "out_dtype": "ScalarType?", "quantize": "str?"}


def _option(name: str, default: Any, check: Any) -> str:
    if default is None or name in _NULLABLE:
        kind = "SymInt?" if check is _forms.whole else "float?"
        return f"{_NULLABLE.get(name, kind)} {name}={default!r}"
    if isinstance(default, tuple):
        return f"int[] {name}={list(default)}"
    return f"{type(default).__name__} {name}={default!r}"


def _implementation(operator: Operator, order: Tuple[str, ...], is_pure: bool
                    ) -> Callable[..., Any]:
    function = operator.function

    def call(*tensors: Any, **named: Any) -> Any:
        given = dict(zip(order, tensors))
        given.update(named)
        values = tuple([given.get(name) for name in function.arrays])
        options = options_of(function, [given.get(name, default)
                                        for name, default in function.options.items()])
        if not is_pure:
            operator.check_out(given)
        made = run(function, values, options, None, None)
        if not is_pure:
            return None
        if len(function.outputs) == 1:
            return made
        every = made if isinstance(made, tuple) else (made,)
        every += (None,) * (len(function.outputs) - len(every))
        return tuple([every[0].new_empty(0) if each is None else each for each in every])

    return call


# ---- Fake implementations ----------------------------------------------------------------------


def _described(name: str, tensor: torch.Tensor, first: torch.Tensor) -> Array:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise invalid(name, _torch.GRADIENT)
    if tensor.device != first.device:
        raise invalid(name, f"on {tensor.device}: must be on {first.device}")
    return Array(tuple(tensor.shape), tuple(tensor.stride()), _torch.dtype_name(tensor.dtype),
                 str(tensor.device), True, "torch")


def _fake(operator: Operator, order: Tuple[str, ...], is_pure: bool) -> Callable[..., Any]:
    function = operator.function

    def infer(*tensors: Any, **named: Any) -> Any:
        given = dict(zip(order, tensors))
        given.update(named)
        first = tensors[0]
        arrays = {name: None if given.get(name) is None else
                  _described(name, given[name], first) for name in function.arrays}
        options = {name: given.get(name, default) for name, default in function.options.items()}
        inferred = function.infer(arrays, options)
        if not is_pure:
            return operator.check_out(given)
        made = []
        for name in function.outputs:
            shape, dtype = inferred.made.get(name, ((0,), ""))
            made.append(first.new_empty(shape, dtype=_torch.dtype_of(dtype) if dtype else None))
        return made[0] if len(made) == 1 else tuple(made)

    return infer


# ---- Registration ------------------------------------------------------------------------------


def _define(library: Any, tags: Any, operator: Operator, is_pure: bool) -> None:
    function = operator.function
    words = operator.inputs.split() if is_pure else _written_first(operator)
    name = function.name if is_pure else function.name + "_out"
    arguments = ", ".join(map(_argument, words))
    options = "".join(f", {_option(option, default, function.checks.get(option))}"
                      for option, default in function.options.items())
    count = len(function.outputs)
    result = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
    keyword = ", *" if options else ""
    library.define(f"{name}({arguments}{keyword}{options}) -> {result if is_pure else '()'}",
                   tags=tags)
    order = tuple(word.rstrip("?!") for word in words)
    call = _implementation(operator, order, is_pure)
    for key in ("CPU", "CUDA"):
        library.impl(name, call, key)
    torch.library.register_fake(f"quern::{name}", _fake(operator, order, is_pure), lib=library)


def register(library: Any, tags: Any, operators: Dict[str, Operator]) -> None:
    """Defines operators in torch_ops.py's library."""
    for operator in operators.values():
        if operator.is_pure:
            _define(library, tags, operator, True)
        _define(library, tags, operator, False)


# ---- While torch.compile traces ------------------------------------------------------------------


def check_plain(function: Function, named: Dict[str, Any]) -> None:
    """TypeError, which torch.compile can trace, unless flags and numbers are Python's own: NumPy's
    are tensors there, and an operator's refusal of such names nothing."""
    for name, check in function.checks.items():
        value = named[name]
        kinds, word = _PLAIN.get(check, ((int, float, type(None)), "a number"))
        if not isinstance(value, kinds):
            raise TypeError(f"{name}: must be {word} of Python's while torch.compile traces")


_PLAIN: Dict[Any, Tuple[Any, str]] = {
    _forms.flag: ((bool, int), "True or False"),
    _forms.pair: ((tuple, list, type(None)), "two whole numbers"),
}
