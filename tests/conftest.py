"""One thread per process: with more, the small models of the tests are slow on a busy machine."""

import os

# Processes that tests start read it when they import torch.
os.environ["OMP_NUM_THREADS"] = "1"
