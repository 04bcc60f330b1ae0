"""Compiles the loops of the pipeline into numba's cache, once, before test processes all would.

python -m tests.support.compile_loops
"""

from stream.warm_up import warm_up
from tests.support.replays import ranked_config

if __name__ == "__main__":
    warm_up(ranked_config())
