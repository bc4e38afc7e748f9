"""What several processes build alike: the database, secrets, ciphers, objects, clients."""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fc_operator.app.state import StateDirectory
from fc_operator.cache import signing
from fc_operator.clients.git import Git
from fc_operator.clients.objects import ObjectStore
from fc_operator.clients.secrets import DirectorySecrets, NoSecrets, Secrets
from fc_operator.errors import SettingsError
from fc_operator.kit import ciphers
from fc_operator.kit.ciphers import Cipher
from fc_operator.operations.cache import BinaryCache, local_token
from fc_operator.settings import NixSettings, Settings
from fc_operator.store import migrations
from fc_operator.store.database import Database
from fc_operator.store.listener import Listener

if TYPE_CHECKING:
    from fc_operator.clients.kube import Kube

_LOCAL_PURPOSE = "cache/local/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What services are built from."""

    settings: Settings
    state: StateDirectory
    database: Database
    listener: Listener
    secrets: Secrets
    cipher: Cipher
    objects: ObjectStore
    git: Git
    kube: Kube | None = None
    """The cluster's API server, where secrets are read from it or pods are made."""
    cache: BinaryCache | None = None
    """Where this process serves it, or brings what it builds into it."""
    own_nix: NixSettings | None = None
    """How Nix is called where it uses our cache; evaluators never do."""
    own_nix_config: str = ""
    """Lines of nix.conf that go with it."""

    @property
    def nix(self) -> NixSettings:
        """How Nix is called to build and to ask what is there."""
        return self.own_nix or self.settings.nix

    def nix_environment(self) -> dict[str, str]:
        """The environment that goes with ``nix``."""
        env = environment()
        if self.own_nix_config:
            env["NIX_CONFIG"] = f"{env.get('NIX_CONFIG', '')}\n{self.own_nix_config}"
        return env

    async def close(self) -> None:
        """Close the connections to the database and to the cluster."""
        if self.cache is not None:
            self.cache.close()
        await self.database.close()
        if self.kube is not None:
            await self.kube.close()


def installation_cipher(settings: Settings, state: StateDirectory) -> Cipher:
    """The cipher of what the server itself must know.

    Raises:
        SettingsError: the given key is no base64 of 32 bytes.
    """
    given = settings.secrets.encryption_key
    if not given:
        return Cipher(ciphers.load_or_make_key(state.path / "encryption.key"))
    try:
        key = base64.b64decode(given, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 32:
        raise SettingsError(
            "secrets.encryption_key is not the base64 of 32 bytes",
            hint="make one with: head -c 32 /dev/urandom | base64",
        )
    return Cipher(key)


def binary_cache(parts: Parts) -> BinaryCache:
    """The binary cache of this installation, signed with the keys of the settings.

    Raises:
        SettingsError: a signing key or a trusted key is malformed.
    """
    cache, nix = parts.settings.cache, parts.settings.nix
    return BinaryCache(
        database=parts.database,
        objects=parts.objects,
        settings=cache,
        store_dir=nix.store_dir,
        keys=signing.load(
            cache.signing_keys,
            cache.signing_key_files,
            seed=parts.cipher.derive("cache/signing/1"),
        ),
        trusted=signing.TrustedKeys(nix.trusted_public_keys),
        local_secret=parts.cipher.derive(_LOCAL_PURPOSE),
    )


def use_cache(parts: Parts, cache: BinaryCache, url: str) -> Parts:
    """The same parts, with ``cache``, answering at ``url``, used by the Nix of this machine.

    Its password lies in a netrc file of the state directory, for nobody but ourselves.
    """
    nix = parts.settings.nix
    netrc = parts.state.path.absolute() / "cache.netrc"
    password = local_token(parts.cipher.derive(_LOCAL_PURPOSE))
    text = f"machine {urlsplit(url).hostname} login fc password {password}\n"
    netrc.unlink(missing_ok=True)
    with os.fdopen(os.open(netrc, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return replace(
        parts,
        cache=cache,
        own_nix=replace(
            nix,
            substituters=(url, *nix.substituters),
            trusted_public_keys=(*cache.public_keys, *nix.trusted_public_keys),
        ),
        # What was missing a moment ago may have been built meanwhile, and keys may be rotated.
        own_nix_config=(
            "narinfo-cache-negative-ttl = 0\nnarinfo-cache-positive-ttl = 3600\n"
            f"netrc-file = {netrc}\n"
        ),
    )


def database_url(settings: Settings) -> str:
    """Where PostgreSQL is, for a process that does not run its own.

    Raises:
        SettingsError: it is not set.
    """
    if not settings.database.url:
        raise SettingsError(
            "there is no database",
            hint="set FC_DATABASE_URL, or use `fc up`, which brings its own",
        )
    return settings.database.url


async def connect_kube(settings: Settings) -> Kube:
    """The API server that the settings name.

    Raises:
        PrerequisiteError: there is no configuration for one.
    """
    from fc_operator.clients.kube import Kube  # 40 MB that a machine without a cluster saves

    given = settings.kubernetes
    return await Kube.connect(
        kubeconfig=given.kubeconfig,
        context=given.context,
        threads=given.threads,
        timeout_s=given.timeout_s,
    )


def open_secrets(settings: Settings, state: StateDirectory, kube: Kube | None) -> Secrets:
    """Where ``secrets.source`` says that secrets are; ``kube`` is given where it is Kubernetes."""
    if kube is not None:
        from fc_operator.clients.kube_secrets import KubernetesSecrets

        return KubernetesSecrets(kube)
    if settings.secrets.source == "None":
        return NoSecrets()
    return DirectorySecrets(state.below(settings.secrets.dir))


async def open_parts(
    settings: Settings, state: StateDirectory, url: str, name: str, *, makes_pods: bool = False
) -> Parts:
    """Everything that services need, on a database whose schema is exactly ours.

    ``makes_pods``: this process makes them, where the settings let pods be made at all.

    Raises:
        SchemaVersionError: the schema is newer, older or absent.
        UnavailableError: PostgreSQL does not answer.
        PrerequisiteError: secrets are Kubernetes', and there is no configuration for a cluster.
    """
    migrations.require(await migrations.state(url))
    in_cluster = settings.secrets.source == "Kubernetes"
    asks_cluster = in_cluster or (makes_pods and settings.kubernetes.enabled)
    kube = await connect_kube(settings) if asks_cluster else None
    database = await Database.open(url, size=settings.database.pool_size, name=name)
    return Parts(
        settings=settings,
        state=state,
        database=database,
        listener=Listener(database, listen=settings.database.listen),
        secrets=open_secrets(settings, state, kube if in_cluster else None),
        cipher=installation_cipher(settings, state),
        # Logs of private projects are among them, and builds may run without a sandbox.
        objects=ObjectStore.open(settings.state.objects_url or state.folder("objects", mode=0o700)),
        git=Git(settings.git, state.folder("mirrors", mode=0o700)),
        kube=kube,
    )


def environment() -> dict[str, str]:
    """Our own environment, of which each room takes only what it names."""
    return dict(os.environ)
