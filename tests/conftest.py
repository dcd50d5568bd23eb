"""One thread a process: the models of the tests are too small to gain from more, and lose much on a
busy machine."""

import os

os.environ["OMP_NUM_THREADS"] = (
    "1"  # for the processes that tests start; read when torch is imported
)
