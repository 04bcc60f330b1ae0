"""A hint for compiled loops: bring a row of an array near before it is needed. Changes no value.

A load that misses the cache holds the loop up until it is answered, and a few hundred instructions
behind it at most; a hint holds up nothing. It may point anywhere: at a row that is not read later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from numba import config, types
from numba.core import cgutils as untyped
from numba.extending import intrinsic

_build: Any = untyped


def _nothing(array: Any, row: Any, column: int) -> None:
    """What the hint is where nothing is compiled."""


def _hint(typingctx: Any, array: Any, row: Any, column: Any) -> Any:
    """Code that hints at a place of an array of any dimensions."""
    del typingctx

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        held = context.make_array(kind)(context, builder, args[0])
        first = [context.cast(builder, args[i], signature.args[i], types.intp) for i in (1, 2)]
        places = (first + [first[0].type(0)] * kind.ndim)[: kind.ndim]
        pointer = _build.get_item_pointer(context, builder, kind, held, places, wraparound=False)
        pointer = builder.bitcast(pointer, _build.voidptr_t)
        word = _build.int32_t
        form = _build.ir.FunctionType(_build.ir.VoidType(), [pointer.type, word, word, word])
        function = _build.get_or_insert_function(builder.module, form, "llvm.prefetch.p0")
        builder.call(function, [pointer, word(0), word(3), word(1)])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(array, row, column), code


prefetch: Callable[[Any, Any, int], None] = cast(
    "Any", _nothing if vars(config)["DISABLE_JIT"] else intrinsic(_hint)
)
"""`prefetch(array, row, column)`: the cache line of `array[row, column]` will be read soon."""
