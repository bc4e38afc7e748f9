"""``fc operator``: objects of our kinds in a cluster, on a database that others share."""

from __future__ import annotations

import asyncio
from pathlib import Path
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
@click.option(
    "--apply-objects",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Bring the config repositories of FILE in, take away earlier ones of --release, and end.",
)
@click.option("--release", "release_name", metavar="NAME", help="The release that they belong to.")
@process_options.settings_options
def command(**options: Any) -> int:
    """Bring a cluster's objects of our kinds into force.

    Projects, Jobsets, RemoteBuilders and ConfigRepositories; what became of them goes back into
    their status. One operator acts at a time: a second one waits for the first.
    """
    from fc_operator.app import operator, processes
    from fc_operator.app import release as app_release

    file, name = options.pop("apply_objects"), options.pop("release_name")
    if (file is None) != (name is None):
        raise click.UsageError("--apply-objects and --release go together")
    release = options.pop("release_objects")
    settings = process_options.load(options)
    if file is not None:
        done = asyncio.run(app_release.apply_objects(settings, file, name))
        click.echo(f"{done.applied} objects applied, {done.deleted} deleted")
    elif release:
        count = asyncio.run(operator.release_objects(settings))
        click.echo(f"{count} objects released")
    else:
        asyncio.run(processes.run_until_stopped(operator.Operator(settings)))
    return exits.DONE
