"""Scripts in processes of their own: what forks, aborts or must start from nothing."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path


def python(script, *arguments, **environment):
    """Start a script in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script), str(Path(__file__).parents[1]), *arguments]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **options)


def finished(process, seconds=120):
    """Its errors, once it is over."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its children
        raise
    assert process.returncode == 0, errors
    return errors
