"""The functions of templates/kda as operators of PyTorch, made from their descriptions.

    torch.ops.quern.NAME       makes its outputs and changes nothing; without the arguments that it
                               would write to. Of two outputs the second, final_state, has no
                               elements where output_final_state is not asked for
    torch.ops.quern.NAME_out   writes to out and, where they are given, to final_state, states and
                               the like; returns nothing

Names are those of quern.kda_prefill() and the others. Shapes and dtypes are inferred from fake
tensors by the very functions that check a call (_families), with symbolic sizes.

What is not here: what torch_ops.py says is not there.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch

from . import _torch
from ._arrays import Array
from ._call import key_value, run
from ._errors import invalid
from ._families import kda, kda_conv, kda_norm
from ._plan import Function


class _Operator(NamedTuple):
    """What a pair of operators is made from. Of an argument with "?" there may be none."""

    function: Function
    inputs: str
    others: str  # further ones that only NAME_out reads
    written: str  # what NAME_out writes to, after out
    like: str  # the input that out is shaped like
    is_pure: bool = True  # there is a NAME, too


_DELTA = "q k v g beta A_log? dt_bias? initial_state?"
_OPERATORS = {
    operator.function.name: operator
    for operator in (
        _Operator(kda.KDA_PREFILL, f"{_DELTA} cu_seqlens?", "slots?",
                  "final_state? states? chunk_states?", "v"),
        _Operator(kda.GDN_PREFILL, f"{_DELTA} cu_seqlens?", "slots?",
                  "final_state? states? chunk_states?", "v"),
        _Operator(kda.KDA_DECODE, _DELTA, "slots? parents?", "final_state? states? step_states?",
                  "v"),
        _Operator(kda.GDN_DECODE, _DELTA, "slots? parents?", "final_state? states? step_states?",
                  "v"),
        _Operator(kda_conv.CAUSAL_CONV1D, "x weight bias? cu_seqlens? has_initial? initial_state?",
                  "slots?", "final_state? states?", "x"),
        _Operator(kda_conv.CAUSAL_CONV1D_UPDATE, "x weight bias?", "slots?", "states windows?", "x",
                  False),
        _Operator(kda_norm.L2NORM, "x", "", "", "x"),
        _Operator(kda_norm.GATED_RMSNORM, "x z weight", "", "", "x"),
        _Operator(kda_norm.KDA_GATE_CUMSUM, "g A_log? dt_bias? cu_seqlens?", "", "", "g"),
    )
}


def _names(words: str) -> Tuple[str, ...]:
    return tuple(words.replace("?", "").split())


# Those that have no default are asked for first, then out, then the rest.
def _written_first(operator: _Operator) -> List[str]:
    words = [*operator.inputs.split(), *operator.others.split()]
    written = ["out!", *[word.replace("?", "!?") if "?" in word else word + "!"
                         for word in operator.written.split()]]
    every = words + written
    return [word for word in every if "?" not in word] + [word for word in every if "?" in word]


def _argument(word: str) -> str:
    """"Tensor(states!)? states=None" of "states!?"."""
    name = word.rstrip("?!")
    alias = f"({name}!)" if "!" in word else ""
    return f"Tensor{alias}? {name}=None" if "?" in word else f"Tensor{alias} {name}"


_NULLABLE = {"activation": "str?"}  # what None stands for; of others a float


def _option(name: str, default: Any) -> str:
    if default is None:
        return f"{_NULLABLE.get(name, 'float?')} {name}=None"
    return f"{type(default).__name__} {name}={default!r}"


def _check_final(given: Dict[str, Any]) -> None:
    """NAME_out returns nothing: what is asked for must be given."""
    if given.get("output_final_state") and given.get("final_state") is None and \
            given.get("states") is None:
        raise invalid("final_state", "must be given with out: an operator makes all or none")


def _implementation(function: Function, names: Tuple[str, ...], is_pure: bool
                    ) -> Callable[..., Any]:
    def call(*tensors: Any, **named: Any) -> Any:
        given = dict(zip(names, tensors))
        given.update(named)
        values = tuple([given.get(name) for name in function.arrays])
        options = tuple([key_value(given.get(name, default))
                         for name, default in function.options.items()])
        if not is_pure:
            _check_final(given)
        made = run(function, values, options, None, None)
        if not is_pure:
            return None
        if len(function.outputs) == 1:
            return made
        out, final_state = made
        return out, out.new_empty(0) if final_state is None else final_state

    return call


# ---- Fake implementations ----------------------------------------------------------------------


def _described(name: str, tensor: torch.Tensor, first: torch.Tensor) -> Array:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise invalid(name, _torch.GRADIENT)
    if tensor.device != first.device:
        raise invalid(name, f"on {tensor.device}: must be on {first.device}")
    return Array(tuple(tensor.shape), tuple(tensor.stride()), _torch.dtype_name(tensor.dtype),
                 str(tensor.device), True, "torch")


def _fake(function: Function, names: Tuple[str, ...], is_pure: bool) -> Callable[..., Any]:
    def infer(*tensors: Any, **named: Any) -> Any:
        given = dict(zip(names, tensors))
        given.update(named)
        first = tensors[0]
        arrays = {name: None if given.get(name) is None else
                  _described(name, given[name], first) for name in function.arrays}
        options = {name: given.get(name, default) for name, default in function.options.items()}
        inferred = function.infer(arrays, options)
        if not is_pure:
            return _check_final(given)
        made = []
        for name in function.outputs:
            shape, dtype = inferred.made.get(name, ((0,), ""))
            made.append(first.new_empty(shape, dtype=_torch.dtype_of(dtype) if dtype else None))
        return made[0] if len(made) == 1 else tuple(made)

    return infer


# ---- Registration ------------------------------------------------------------------------------


def _define(library: Any, tags: Any, operator: _Operator, is_pure: bool) -> None:
    function = operator.function
    words = operator.inputs.split() if is_pure else _written_first(operator)
    name = function.name if is_pure else function.name + "_out"
    arguments = ", ".join(map(_argument, words))
    options = "".join(f", {_option(*item)}" for item in function.options.items())
    result = "Tensor" if len(function.outputs) == 1 else "(Tensor, Tensor)"
    keyword = ", *" if options else ""
    library.define(f"{name}({arguments}{keyword}{options}) -> {result if is_pure else '()'}",
                   tags=tags)
    names = tuple(word.rstrip("?!") for word in words)
    call = _implementation(function, names, is_pure)
    for key in ("CPU", "CUDA"):
        library.impl(name, call, key)
    torch.library.register_fake(f"quern::{name}", _fake(function, names, is_pure), lib=library)


def register(library: Any, tags: Any) -> None:
    """Defines all operators in torch_ops.py's library."""
    for operator in _OPERATORS.values():
        if operator.is_pure:
            _define(library, tags, operator, True)
        _define(library, tags, operator, False)


# ---- While torch.compile traces ------------------------------------------------------------------


def traced(name: str, values: Tuple[Any, ...], options: Tuple[Any, ...]) -> Any:
    """What the function `name` is then: NAME, or where an argument is written NAME_out."""
    operator = _OPERATORS[name]
    function = operator.function
    given: Dict[str, Any] = dict(zip(function.arrays, values))
    named: Dict[str, Any] = dict(zip(function.options, options))
    rest = {key: given[key] for key in (*_names(operator.others), *_names(operator.written), "out")
            if given[key] is not None}
    inputs = [given[key] for key in _names(operator.inputs)]
    wants_final = named.get("output_final_state", False)
    if operator.is_pure and not rest:
        made = getattr(torch.ops.quern, name).default(*inputs, **named)
        if len(function.outputs) == 1:
            return made
        return made[0], made[1] if wants_final else None
    if given["out"] is None:
        like = given[operator.like]
        dtype: Optional[torch.dtype] = torch.float32 if name == "kda_gate_cumsum" else like.dtype
        rest["out"] = torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)
    every = {key: value for key, value in zip(_names(operator.inputs), inputs)
             if value is not None}
    getattr(torch.ops.quern, name + "_out").default(**every, **rest, **named)
    if len(function.outputs) == 1:
        return rest["out"]
    return rest["out"], given["final_state"]
