"""Triton's autotuner with its candidates compiled side by side, so that a run has an end.

    with side_by_side():
        function(...)       # its first call: compiles all candidates in threads, then tunes as ever

Autotuner.run() asks prune_configs() for the candidates of a kind of call, and compiles and times
them one after another; here they are compiled before that answer. What is timed and chosen is
Triton's own. What a program's first call takes is measured in processes without this
(harness/start_child.py).
"""
from __future__ import annotations

import contextlib
import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator


@contextlib.contextmanager
def side_by_side() -> Iterator[None]:
    """Not for several threads. Without Triton's AsyncCompileMode it changes nothing."""
    try:
        mode = importlib.import_module("triton.runtime._async_compile").AsyncCompileMode
        Autotuner = importlib.import_module("triton.runtime.autotuner").Autotuner
    except ImportError:
        yield
        return
    plain = Autotuner.prune_configs

    def compile_then_prune(tuner: Any, kwargs: dict[str, Any]) -> Any:
        configs = plain(tuner, kwargs)
        with ThreadPoolExecutor(os.cpu_count()) as pool, mode(pool, ignore_errors=True):
            for config in configs:
                tuner.fn.run(*tuner.nargs.values(),
                             **{**kwargs, **config.all_kwargs(), "warmup": True})
        return configs

    Autotuner.prune_configs = compile_then_prune
    try:
        yield
    finally:
        Autotuner.prune_configs = plain
