"""torch's scaled_dot_product_attention() by quern where quern has it, by torch where it has not.

    what quern has      no mask, no dropout, no gradient; queries, keys and values of one batch and
                        one dtype, bf16 or f16, on the CPU also f32, [B, H, S, D] with a D of
                        attention()'s, whatever their strides
    is_causal           torch's is aligned to the top left: query i sees keys up to i. With as many
                        queries as keys that is attention()'s; of more keys the rest is left out;
                        of more queries torch's own does it

torch is imported by the first call.
"""

from __future__ import annotations

import sys
from typing import Any, Callable, Optional

from ._errors import Error

_Fallback = Callable[..., Any]


def _answer(note: Optional[Callable[[str], None]], fallback: _Fallback, query: Any, key: Any,
            value: Any, attn_mask: Any, dropout_p: Any, is_causal: bool, scale: Any,
            enable_gqa: bool) -> Any:
    """A call's result. note: told why torch did it, or "" """
    import torch
    from . import _torch_sdpa
    why = _torch_sdpa.why_not(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    result = None
    if not why:
        try:
            result = _torch_sdpa.attend(query, key, value, is_causal, scale)
        except Error as error:
            if error.status not in ("UNSUPPORTED", "INVALID"):  # a device without it, a size
                raise
            why = "refused"
    if note is not None and not torch.compiler.is_compiling():
        note(why)
    if not why:
        return result
    gqa = {"enable_gqa": True} if enable_gqa else {}  # torch 2.4 has no such argument
    return fallback(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p,
                    is_causal=is_causal, scale=scale, **gqa)


def scaled_dot_product_attention(query: Any, key: Any, value: Any, attn_mask: Any = None,
                                 dropout_p: float = 0.0, is_causal: bool = False,
                                 scale: Optional[float] = None, enable_gqa: bool = False) -> Any:
    """torch.nn.functional.scaled_dot_product_attention(), by quern where quern has it.

    query, key, value, attn_mask, dropout_p, is_causal, scale and enable_gqa are torch's, [B, H, S,
    D], and so is the result, up to rounding and its strides. quern computes it without a mask,
    dropout and gradients, of bf16, f16 and on the CPU f32, with D of 64, 96, 128, 192 or 256 and
    values of that or 192 and 128; everything else is handed to torch's own. is_causal is torch's,
    aligned to the top left. Nothing is copied.
    """
    import torch
    return _answer(None, torch._C._nn.scaled_dot_product_attention, query, key, value, attn_mask,
                   dropout_p, is_causal, scale, enable_gqa)


class Replacement:
    """quern's scaled_dot_product_attention() in torch's place, as replace_sdpa() put it there.

    ``calls`` counts those that quern computed, ``left`` those that what was there before did, by
    the reason; neither counts what torch.compile has compiled. A with statement of it puts back
    what was there before at its end, as restore() does.
    """

    def __init__(self) -> None:
        import torch.nn.functional
        self.calls = 0
        self.left: dict[str, int] = {}
        self._place = torch.nn.functional
        self._before = before = self._place.scaled_dot_product_attention

        def replaced(query: Any, key: Any, value: Any, attn_mask: Any = None,
                     dropout_p: float = 0.0, is_causal: bool = False,
                     scale: Optional[float] = None, enable_gqa: bool = False) -> Any:
            return _answer(self._note, before, query, key, value, attn_mask, dropout_p, is_causal,
                           scale, enable_gqa)

        self._own: Optional[_Fallback] = replaced
        self._place.scaled_dot_product_attention = replaced

    def _note(self, why: str) -> None:
        if why:
            self.left[why] = self.left.get(why, 0) + 1
        else:
            self.calls += 1

    def restore(self) -> None:
        """Puts back what was there before; again, nothing. Error: another replacement is on it."""
        if self._own is None:
            return
        if self._place.scaled_dot_product_attention is not self._own:
            raise Error("scaled_dot_product_attention: was replaced again since; restore that "
                        "first")
        self._place.scaled_dot_product_attention = self._before
        self._own = None

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def replace_sdpa() -> Replacement:
    """Makes torch.nn.functional.scaled_dot_product_attention() quern's, until it is put back.

        with quern.replace_sdpa() as replaced:
            model(tokens)                     # or replaced.restore() later on
        print(replaced.calls, replaced.left)  # {"attn_mask": 2}: torch did those

    As scaled_dot_product_attention() says; what quern has not is handed to what was there before.
    In all threads. Modules that look the function up when they call it (torch.nn's, transformers')
    are reached; those that imported it by name, and what torch.compile compiled before, are not.
    """
    if "torch" not in sys.modules:
        raise Error("torch: must be imported before its function can be replaced")
    return Replacement()
