"""What we propose to SpikingJelly (Apache-2.0): see the README beside, and ``python -m adapters.spikingjelly --help``."""

from __future__ import annotations

from ..change import Change

CHANGES: tuple[Change, ...] = ()
"""The pull requests, each on its own."""
