"""How many examples property tests try: all of them with `make test`, a quarter otherwise.

Examples differ from run to run, so quick runs try others each time.
"""

from __future__ import annotations

import os

from hypothesis import settings

_QUICK_SHARE = 4


def examples(count: int) -> settings:
    """Settings for `count` examples, which may take as long as they need."""
    full = os.environ.get("MILLRACE_EXAMPLES") == "all"
    return settings(max_examples=count if full else -(-count // _QUICK_SHARE), deadline=None)
