"""One job of one part in this process: ``python -m benchmarks.speed PART JOB``, for the command's own use.

``{"settings": ..., ...}`` comes as JSON on the input: the settings, and the job's other arguments. The answer is the
last line of the output.
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib import import_module
from typing import Any

import torch

from .timing import Settings


def answer(part: str, job: str, asked: dict[str, Any]) -> Any:
    """What the job returns, with torch's threads as the settings say."""
    settings = Settings(**asked.pop("settings"))
    torch.set_num_threads(settings.threads)
    return getattr(import_module(f".{part}", __package__), job)(settings, **asked)


if __name__ == "__main__":
    # A host that prints while it is imported must not end up in the answer.
    with contextlib.redirect_stdout(sys.stderr):
        found = answer(sys.argv[1], sys.argv[2], json.load(sys.stdin))
    print(json.dumps(found))
