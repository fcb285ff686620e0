"""Let the tests of this folder, and the scripts they start, import ``turn_training``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
