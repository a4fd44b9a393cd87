"""``python -m adapters.spikingjelly``."""

import sys

from ..change import main
from . import CHANGES

sys.exit(main("spikingjelly", CHANGES))
