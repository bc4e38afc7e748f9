"""``fc schema``: JSON Schemas of the manifests, made from the CRDs, for editors."""

from __future__ import annotations

import json

import click

_EXAMPLES = """\
\b
Examples:
  fc schema > manifest.schema.json    one schema for every kind
  fc schema Jobset                    one kind only
  fc schema --crds | kubectl apply -f -

\b
Then begin each manifest with this line, and editors complete and check it:
  # yaml-language-server: $schema=manifest.schema.json
"""


@click.command(short_help="Print the JSON Schema of manifests, for editors.", epilog=_EXAMPLES)
@click.argument("kind", default="all")
@click.option("--crds", is_flag=True, help="The CustomResourceDefinitions as YAML instead.")
def command(kind: str, *, crds: bool) -> None:
    """Print the JSON Schema of manifests, for editors.

    KIND is Project, Jobset, RemoteBuilder, ConfigRepository, or all (the default).
    """
    from fc_operator.model import desired
    from fc_operator.spec import schemas

    if crds:
        click.echo("---\n".join(file.read_text() for file in schemas.crd_files()), nl=False)
        return
    by_lower = {each.lower(): each for each in desired.KINDS} | {"all": "all"}
    found = by_lower.get(kind.lower().removesuffix("s"))
    if found is None:
        raise click.BadParameter(
            f"{kind!r} is none of {', '.join([*desired.KINDS, 'all'])}", param_hint="KIND"
        )
    click.echo(json.dumps(schemas.json_schema(found), indent=1))
