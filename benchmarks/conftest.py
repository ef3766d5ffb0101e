"""Makes the folder's own modules importable and removes page faults before the first tensor."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

machine.find_package()
from lightkernels._core import measure  # noqa: E402

measure.steady_memory(2**29)
