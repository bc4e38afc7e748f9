"""``fc agent``: what pods run."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import click

from fc_operator.cli import process_options

_EXAMPLES = """\
\b
Examples:
  fc agent          as the containers of pods begin it

\b
Its pod says what it is to do, in the environment:
  FC_AGENT_SERVER   root of the server
  FC_AGENT_TASK     id of the task
  FC_AGENT_TOKEN    opens the task, once
  FC_AGENT_PHASE    fetch or work
"""


@click.command(short_help="Evaluate or build inside a pod.", epilog=_EXAMPLES)
@process_options.settings_options
def command(**options: Any) -> int:
    """Evaluate or build inside a pod, and tell the server how it goes.

    The scheduler makes these pods; nobody runs this by hand. Exit codes: 75 when the server was
    away for too long, 78 when the pod is not fit for its work.
    """
    from fc_operator.app import agent

    settings = process_options.load(options)
    return asyncio.run(agent.run(settings.agent, os.environ))
