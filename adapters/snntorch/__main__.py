"""``python -m adapters.snntorch``."""

import sys

from ..change import main
from . import CHANGES

sys.exit(main("snntorch", CHANGES))
