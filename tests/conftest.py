"""Settings of every test: no hub, and one thread (the tests' tensors are small, and cores are shared)."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)
