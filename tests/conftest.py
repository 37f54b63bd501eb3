"""One thread a test process: two that compete for two cores spin more than they compute."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
