"""``fc operator``: objects of our kinds in a cluster, on a database that others share."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from fc_operator.cli import exits, process_options

_EXAMPLES = """\
\b
Examples:
  FC_DATABASE_URL=postgresql://fc@db/fc fc operator
  fc operator --set kubernetes.kubeconfig=$HOME/.kube/config --set operator.namespaces=team-a
  fc operator --release-objects    # before the operator is removed for good

The schema and the files in crds/ must be there.
"""


@click.command(short_help="Bring a cluster's objects of our kinds into force.", epilog=_EXAMPLES)
@click.option(
    "--release-objects",
    is_flag=True,
    help="Take our finalizer off all objects and end; a running operator ends too.",
)
@process_options.settings_options
def command(**options: Any) -> int:
    """Bring a cluster's objects of our kinds into force.

    Projects, Jobsets, RemoteBuilders and ConfigRepositories; what became of them goes back into
    their status. One operator acts at a time: a second one waits for the first.
    """
    from fc_operator.app import operator, processes

    release = options.pop("release_objects")
    settings = process_options.load(options)
    if release:
        count = asyncio.run(operator.release_objects(settings))
        click.echo(f"{count} objects released")
    else:
        asyncio.run(processes.run_until_stopped(operator.Operator(settings)))
    return exits.DONE
