"""What every test shares: one thread per process (two cores are shared by several processes), no downloads, and a
model library of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

os.environ["BRANCHWORK_HOME"] = tempfile.mkdtemp(prefix="branchwork-library-")
atexit.register(shutil.rmtree, os.environ["BRANCHWORK_HOME"], ignore_errors=True)
