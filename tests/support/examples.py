"""How many examples property tests try: all of them with `make test`, a quarter otherwise.

Examples differ from run to run, so quick runs try others each time.
"""

from __future__ import annotations

import os

from hypothesis import settings

_QUICK_SHARE = 4


def tries(count: int) -> int:
    """How many of `count` examples are tried now."""
    return count if os.environ.get("MILLRACE_EXAMPLES") == "all" else -(-count // _QUICK_SHARE)


def examples(count: int) -> settings:
    """Settings for `count` examples, which may take as long as they need."""
    return settings(max_examples=tries(count), deadline=None)
