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

from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch

from . import _forms, _torch
from ._arrays import Array
from ._call import options_of, run
from ._errors import invalid
from ._families import kda, kda_conv, kda_norm, kda_step
from ._plan import Function


class _Operator(NamedTuple):
    """What a pair of operators is made from. Of an argument with "?" there may be none."""

    function: Function
    inputs: str
    others: str  # further ones that only NAME_out reads
    written: str  # what NAME_out writes to, after out
    like: str  # the input that out is shaped like, but for kda_step's
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
        _Operator(kda_step.KDA_STEP, "x weight bias? g beta A_log? dt_bias? z? norm_weight?",
                  "slots", "conv_states states", "x", False),
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
    if default is None or name in _NULLABLE:
        return f"{_NULLABLE.get(name, 'float?')} {name}={default!r}"
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
        options = options_of(function, [given.get(name, default)
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


def _made_out(operator: _Operator, given: Dict[str, Any], named: Dict[str, Any]) -> torch.Tensor:
    """A new out, of zeros where tokens may belong to no sequence."""
    like, name = given[operator.like], operator.function.name
    shape, dtype = like.shape, like.dtype
    if name == "kda_gate_cumsum":
        dtype = torch.float32
    elif name == "kda_step" and given["states"].dim() == 4:  # else it is refused
        states = given["states"].shape
        shape = (like.shape[0], states[1], states[2 if named["state_v_first"] else 3])
    if name in ("kda_prefill", "gdn_prefill") and given["cu_seqlens"] is not None:
        return like.new_zeros(shape, dtype=dtype)
    return like.new_empty(shape, dtype=dtype)


def _made_final(operator: _Operator, given: Dict[str, Any], named: Dict[str, Any]) -> torch.Tensor:
    """A new final_state; of arguments that are refused any tensor."""
    first, borders = given[operator.inputs.split()[0]], given.get("cu_seqlens")
    is_delta = operator.like == "v"
    is_packed = operator.function.family != "kda_decode" and first.dim() == (3 if is_delta else 2)
    n = 1 if is_packed or not first.dim() else first.shape[0]
    if borders is not None:
        n = borders.shape[0] - 1 if borders.dim() else 0
    if not is_delta:
        taps = given["weight"].shape[-1] - 1 if given["weight"].dim() == 2 else 0
        return first.new_empty((n, taps, first.shape[-1]))
    v, before = given["v"], given["initial_state"]
    shape: Any = (0,)
    if first.dim() == v.dim() and v.dim() in (3, 4):
        last = (v.shape[-1], first.shape[-1])
        shape = (n, v.shape[-2], *(last if named["state_v_first"] else last[::-1]))
    return v.new_empty(shape, dtype=torch.float32 if before is None else before.dtype)


def _check_plain(function: Function, named: Dict[str, Any]) -> None:
    """TypeError, which torch.compile can trace, unless flags and numbers are Python's own: NumPy's
    are tensors there, and an operator's refusal of such names nothing."""
    for name, check in function.checks.items():
        value, is_flag = named[name], check is _forms.flag
        kinds: Any = (bool, int) if is_flag else (int, float, type(None))
        if not isinstance(value, kinds):
            raise TypeError(f"{name}: must be {'True or False' if is_flag else 'a number'} of "
                            "Python's while torch.compile traces")


def traced(name: str, values: Tuple[Any, ...], options: Tuple[Any, ...]) -> Any:
    """What the function `name` is then: NAME, or where an argument is written NAME_out."""
    operator = _OPERATORS[name]
    function = operator.function
    given: Dict[str, Any] = dict(zip(function.arrays, values))
    named: Dict[str, Any] = dict(zip(function.options, options))
    _check_plain(function, named)
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
        rest["out"] = _made_out(operator, given, named)
    if wants_final and all(given.get(key) is None for key in ("final_state", "states", "slots")):
        rest["final_state"] = _made_final(operator, given, named)
    every = {key: value for key, value in zip(_names(operator.inputs), inputs)
             if value is not None}
    getattr(torch.ops.quern, name + "_out").default(**every, **rest, **named)
    if len(function.outputs) == 1:
        return rest["out"]
    return rest["out"], rest.get("final_state")
