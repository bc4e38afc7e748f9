"""Manifests over HTTP: check them, see what they would change, bring them into force.

The source is ``Apply`` with the key's name: what one key applied, no other source may change. A
second key of the same name goes on where the first was, so that keys can be changed.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.model import sources
from fc_operator.model.sources import Source
from fc_operator.store.database import Connection
from fc_operator.web import answers
from fc_operator.web.routes import Answer, Call, post

if TYPE_CHECKING:
    # These bring the reconciler and the rules of manifests; a server need not have them to start.
    from fc_operator.operations.manifests import Keyring
    from fc_operator.spec.manifests import Parsed

Files = Annotated[dict[str, str], msgspec.Meta(max_length=5_000)]


class ManifestFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files by path; the path decides whether it is read as a manifest (``.yaml``, ``.json``)."""

    manifests: Files


class PlannedFiles(ManifestFiles, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files, and whether they are all there is."""

    prune: bool = False
    """They are all that this key declares: what it declared before and is missing goes."""
    confirm: bool = False
    """Prune even more than the guard allows."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with manifests."""

    ok: bool
    problems: list[dict[str, Any]]
    objects: list[dict[str, str]]
    """Kind and identity of what they declare."""


class SourceName(msgspec.Struct, frozen=True):
    """Where declarations come from."""

    kind: str
    name: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What manifests did, or would do."""

    source: SourceName
    revision: str
    counts: dict[str, int]
    """By action: create, update, unchanged, prune, keep, release, refuse, wait."""
    changes: bool
    ok: bool
    """Whether everything that was declared is, or would be, in force."""
    objects: list[dict[str, Any]]
    problems: list[dict[str, Any]]
    prune_blocked: str


async def handle_validate(call: Call[Any, ManifestFiles]) -> HTTPResponse:
    """Say what is wrong with manifests; nothing is looked up and nothing written."""
    parsed = await _parse(call.body.manifests)
    verdict = {
        "ok": not parsed.problems,
        "problems": [each.as_dict() for each in parsed.problems],
        "objects": [{"kind": each.kind, "identity": each.identity} for each in parsed.declarations],
    }
    return answers.json(call, verdict)


async def handle_plan(call: Call[Any, PlannedFiles]) -> HTTPResponse:
    """Say what manifests would change; nothing is written."""
    from fc_operator.operations import manifests

    body = call.body
    report = await manifests.plan(
        call.web.database,
        _source(call),
        await _parse(body.manifests),
        keyring=_keyring(call),
        config=call.web.settings.config,
        revision=_revision(body.manifests),
        complete=body.prune,
        prune=body.prune,
        confirm=body.confirm,
    )
    return answers.json(call, report.as_dict())


async def handle_apply(call: Call[Any, PlannedFiles]) -> HTTPResponse:
    """Bring manifests into force, in one transaction."""
    from fc_operator.operations import manifests, rights

    body, source = call.body, _source(call)
    parsed = await _parse(body.manifests)

    async def is_allowed(connection: Connection) -> bool:
        await rights.check(connection, call.principal, source, parsed.declarations)
        return True

    report = await manifests.apply(
        call.web.database,
        source,
        parsed,
        keyring=_keyring(call),
        config=call.web.settings.config,
        revision=_revision(body.manifests),
        complete=body.prune,
        prune=body.prune,
        confirm=body.confirm,
        still_held=is_allowed,
    )
    return answers.json(call, report.as_dict())


async def _parse(files: dict[str, str]) -> Parsed:
    """Off the event loop: large manifests take a while."""
    from fc_operator.spec import manifests as parser

    data = {path: text.encode() for path, text in files.items()}
    return await asyncio.to_thread(parser.parse, data)


def _source(call: Call[Any, Any]) -> Source:
    return Source(sources.APPLY, call.principal.name)


def _keyring(call: Call[Any, Any]) -> Keyring:
    from fc_operator.operations.manifests import Keyring

    return Keyring(call.web.secrets, call.web.cipher)


def _revision(files: dict[str, str]) -> str:
    """Names what was sent, so that people can tell one apply from another."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path}\0{files[path]}\0".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


_REPORT = Answer(body=Report)
ROUTES = (
    post(
        "/api/v1/manifests/validate",
        handle_validate,
        "Say what is wrong with manifests.",
        action=Action.READ,
        records_itself=True,
        body=ManifestFiles,
        answer=Answer(body=Verdict),
    ),
    post(
        "/api/v1/manifests/plan",
        handle_plan,
        "Say what manifests would change.",
        action=Action.PLAN,
        body=PlannedFiles,
        records_itself=True,
        answer=_REPORT,
    ),
    post(
        "/api/v1/manifests/apply",
        handle_apply,
        "Bring manifests into force, in one transaction.",
        action=Action.APPLY,
        body=PlannedFiles,
        answer=_REPORT,
    ),
)
