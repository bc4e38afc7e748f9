"""``fc cache``: how to use the binary cache, and keys for it."""

from __future__ import annotations

from typing import Any

import click

from fc_operator.cli import connections, exits, outputs

_EXAMPLES = """\
\b
Examples:
  fc cache                               its address, keys, size, and lines for nix.conf
  fc cache new-key ci.example.org-2      a key pair, for cache.signing_keys

\b
To bring paths into it, put a key of the role admin into a netrc file
(machine HOST login fc password fc_...) and call
  nix copy --to 'http://HOST/cache?compression=zstd' --netrc-file FILE PATH
"""


@click.group(
    short_help="Show the binary cache; make signing keys.",
    epilog=_EXAMPLES,
    invoke_without_command=True,
)
@outputs.output_option
@connections.server_options
@click.pass_context
def command(context: click.Context, output: str) -> int:
    """Show how to use the binary cache, and how much it holds."""
    if context.invoked_subcommand is not None:
        return exits.DONE
    base = connections.address().rstrip("/")
    cache = connections.call(lambda client: client.get("/cache"))
    if output != "table":
        outputs.print_data(output, cache)
        return exits.DONE
    url = f"{base}{cache['path']}"
    click.echo(f"{url}: {cache['paths']} paths, {_size(cache['nar_bytes'])}, "
               f"stored in {_size(cache['file_bytes'])}")  # fmt: skip
    click.echo("\nfor nix.conf:")
    click.echo(f"extra-substituters = {url}")
    click.echo(f"extra-trusted-public-keys = {' '.join(cache['public_keys'])}")
    return exits.DONE


@command.command("new-key", short_help="Make a key pair that signs paths.")
@click.argument("name")
def new_key(name: str) -> int:
    """Make a key pair NAME. Its secret half is printed once, and kept nowhere.

    To rotate: put the new secret key beside the old one into cache.signing_keys, let clients trust
    the public key, and take the old one out when all of them do.
    """
    from fc_operator.cache import signing
    from fc_operator.kit.ciphers import Ed25519Key

    key = signing.SigningKey(name, Ed25519Key.make())
    signing.parse_secret_key(key.secret)
    click.echo(f"public:  {key.public}", err=True)
    click.echo("secret, for cache.signing_keys (FC_CACHE_SIGNING_KEYS):", err=True)
    click.echo(key.secret)
    return exits.DONE


def _size(value: Any) -> str:
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
