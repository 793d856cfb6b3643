"""The structs and lists of quern.h, quern/tune.h and quern/cache.h, for ctypes.

Each class has the fields of the C struct of its name, in their order; tests/structs_test.py
compiles the headers and compares every size and offset. VERSION is the QUERN_VERSION that they
were written for: until 1.0 structs may grow with it, so _library refuses any other.

What is not here: meanings. The headers are the reference.
"""

from __future__ import annotations

import ctypes
import struct
from ctypes import (CFUNCTYPE, POINTER, Structure, c_char, c_char_p, c_double, c_int, c_int64,
                    c_size_t, c_uint64, c_void_p)

VERSION = "0.1.0"

MAX_PARAMS = 32
MAX_RANK = 6
MAX_STEPS = 8
REQUIRED = -(2**63)  # default_value of a parameter that must be given

# enum quern_dtype: a dtype's number is its place here.
DTYPES = ("none", "f32", "bf16", "f16", "f64", "e4m3", "e5m2", "i8", "u8", "i32", "i64")
DTYPE_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8, "e4m3": 1, "e5m2": 1, "i8": 1, "u8": 1,
               "i32": 4, "i64": 8}
# What NumPy, ml_dtypes and torch call them: taken wherever a dtype is named.
SHORT_NAMES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64",
               "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "int8": "i8", "uint8": "u8",
               "int32": "i32", "int64": "i64"}

# enum quern_param_kind, quern_role
SIZE, CHOICE, DTYPE, FLAG, REAL = range(5)
ABSENT, IN, OUT, INOUT = range(4)

LOG_LEVELS = ("off", "warn", "info", "debug")
CONFIG_FROM = ("given", "tuned", "neighbour", "heuristic")
ARTIFACT_FROM = ("memory", "disk", "compiled")


class Opaque(Structure):
    """struct quern_context and struct quern_kernel: only their addresses are used."""


class Param(Structure):
    _fields_ = [("name", c_char_p), ("param_class", c_int), ("kind", c_int), ("domain", c_char_p),
                ("minimum", c_int64), ("default_value", c_int64), ("doc", c_char_p)]


class ArrayInfo(Structure):
    _fields_ = [("name", c_char_p), ("role", c_char_p), ("dtype", c_char_p), ("shape", c_char_p),
                ("doc", c_char_p)]


class Spec(Structure):
    _fields_ = [("family", c_void_p), ("values", c_int64 * MAX_PARAMS)]


class ArrayStruct(Structure):
    """struct quern_array"""
    _fields_ = [("data", c_void_p), ("size_bytes", c_size_t), ("rank", c_int64),
                ("strides", c_int64 * MAX_RANK)]


# Both are only read by C during a call, so they may be bytes: cheaper to make than the classes.
ARRAY_TAIL = ArrayStruct.size_bytes.offset  # where all but the data pointer begins
ARRAY_FORMAT = f"P{ctypes.sizeof(ArrayStruct) - ARRAY_TAIL}s"  # data, tail
pack_call = struct.Struct("PPN").pack  # stream, workspace, workspace_bytes of struct quern_call


class Shape(Structure):
    _fields_ = [("role", c_int), ("dtype", c_int), ("rank", c_int), ("dims", c_int64 * MAX_RANK)]


class FamilyDescription(Structure):
    _fields_ = [("name", c_char_p), ("folder", c_char_p), ("doc", c_char_p),
                ("params", POINTER(Param)), ("arrays", POINTER(ArrayInfo)),
                ("param_count", c_int), ("array_count", c_int), ("variant_count", c_int),
                ("variants", c_char_p * 16)]


# Callbacks. log: (user, level, line); alloc: (bytes, device, stream, user) -> data;
# free: (data, bytes, device, stream, user); fact: (user, section, name, value).
LogCallback = CFUNCTYPE(None, c_void_p, c_int, c_char_p)
AllocCallback = CFUNCTYPE(c_void_p, c_size_t, c_int, c_void_p, c_void_p)
FreeCallback = CFUNCTYPE(None, c_void_p, c_size_t, c_int, c_void_p, c_void_p)
FactCallback = CFUNCTYPE(None, c_void_p, c_char_p, c_char_p, c_char_p)


class Options(Structure):
    _fields_ = [("size", c_size_t), ("cache", c_char_p), ("base", c_char_p), ("device", c_char_p),
                ("mode", c_char_p), ("clang", c_char_p), ("nvrtc", c_char_p),
                ("templates", c_char_p), ("profile", c_char_p), ("dump", c_char_p),
                ("threads", c_int), ("makers", c_int), ("log_level", c_int), ("log", LogCallback),
                ("user", c_void_p), ("alloc", AllocCallback), ("free", FreeCallback),
                ("alloc_user", c_void_p)]


class Request(Structure):
    _fields_ = [("size", c_size_t), ("spec", POINTER(Spec)), ("arrays", POINTER(ArrayStruct)),
                ("variant", c_char_p), ("config", c_char_p), ("target", c_char_p),
                ("rank", c_int), ("origin", c_void_p)]


class StepReport(Structure):
    _fields_ = [("name", c_char * 32), ("from_", c_int), ("compile_ms", c_double),
                ("load_ms", c_double), ("registers", c_int), ("spills", c_int),
                ("shared_bytes", c_int64)]


class Report(Structure):
    _fields_ = [("variant", c_char * 64), ("target", c_char * 96), ("bucket", c_char * 512),
                ("config", c_char * 512), ("config_from", c_int), ("artifact", c_int),
                ("step_count", c_int), ("steps", StepReport * MAX_STEPS),
                ("first_call_ms", c_double), ("workspace_bytes", c_int64)]


class Call(Structure):
    _fields_ = [("stream", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_size_t)]


class TuneProgress(Structure):
    _fields_ = [("done", c_int), ("total", c_int), ("failed", c_int), ("seconds", c_double),
                ("best_us", c_double), ("variant", c_char_p), ("config", c_char_p),
                ("outcome", c_char_p)]


ProgressCallback = CFUNCTYPE(c_int, c_void_p, POINTER(TuneProgress))


class TuneOptions(Structure):
    _fields_ = [("size", c_size_t), ("budget_s", c_double), ("max_configs", c_int),
                ("force", c_int), ("jobs", c_int), ("memory_bytes", c_size_t),
                ("seed", c_uint64), ("retune_before", c_int64), ("retune_toolkit", c_int),
                ("progress", ProgressCallback), ("user", c_void_p)]


class TuneEntry(Structure):
    _fields_ = [("variant", c_char * 64), ("config", c_char * 512), ("time_us", c_double),
                ("spread_us", c_double)]


class TuneResultStruct(Structure):
    """struct quern_tune_result"""
    _fields_ = [("bucket", c_char * 512), ("candidates", c_int), ("failed", c_int),
                ("best", TuneEntry), ("heuristic", TuneEntry), ("speedup", c_double),
                ("seconds", c_double), ("scratch_bytes", c_int64), ("is_reused", c_int),
                ("is_drawn", c_int)]


class CacheStats(Structure):
    _fields_ = [("artifacts", c_int64), ("tuned", c_int64), ("trials", c_int64),
                ("misses_recorded", c_int64), ("bytes", c_int64), ("compiles", c_int64),
                ("hits", c_int64), ("misses", c_int64)]


# Under the name of the C struct: what tests/structs_test.py compares.
BY_C_NAME: dict[str, type[ctypes.Structure]] = {
    "quern_param": Param, "quern_array_info": ArrayInfo, "quern_spec": Spec,
    "quern_array": ArrayStruct, "quern_shape": Shape,
    "quern_family_description": FamilyDescription, "quern_options": Options,
    "quern_request": Request, "quern_step_report": StepReport, "quern_report": Report,
    "quern_call": Call, "quern_tune_progress": TuneProgress, "quern_tune_options": TuneOptions,
    "quern_tune_entry": TuneEntry, "quern_tune_result": TuneResultStruct,
    "quern_cache_stats": CacheStats,
}
