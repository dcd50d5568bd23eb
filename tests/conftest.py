"""One thread per process: more would slow the small models of the tests on a busy machine."""

import os

# Processes that tests start read it when they import torch.
os.environ["OMP_NUM_THREADS"] = "1"
