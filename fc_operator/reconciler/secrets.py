"""Secrets of declarations: which are referred to, which are missing, and what webhooks keep.

Values are read before the transaction and handed in; here they are only compared and encrypted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from fc_operator.kit.ciphers import Cipher, CipherError
from fc_operator.model.desired import (
    Declaration,
    DesiredBuilder,
    DesiredConfigRepository,
    DesiredProject,
    WebhookSpec,
)
from fc_operator.model.ids import new_uuid
from fc_operator.model.resources import Key, WebhookRow


class Reference(NamedTuple):
    """One key of a secret; key ``""`` means the secret as a whole."""

    namespace: str
    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vault:
    """What the references lead to, as it was read, and the key that encrypts what is kept."""

    cipher: Cipher = field(repr=False)
    values: Mapping[Reference, bytes] = field(default_factory=dict, repr=False)
    missing: Mapping[Reference, str] = field(default_factory=dict)
    """Why a reference leads nowhere. What is in neither was not looked at."""


def references(declaration: Declaration) -> Iterator[tuple[Reference, str]]:
    """Every secret that a declaration refers to, with the field that does so."""
    declared, namespace = declaration.desired, declaration.namespace
    if isinstance(declared, DesiredProject | DesiredConfigRepository):
        if declared.credentials_secret is not None:
            whole = Reference(namespace, declared.credentials_secret, "")
            yield whole, "credentialsSecretRef"
        for webhook in declared.webhooks:
            at = f"the webhook of {webhook.forge}"
            yield Reference(namespace, webhook.secret.name, webhook.secret.key), at
    if isinstance(declared, DesiredProject):
        for notification in declared.notifications:
            for ref in (notification.token, notification.secret):
                if ref is not None:
                    at = f"the notification {notification.name or notification.type}"
                    yield Reference(namespace, ref.name, ref.key), at
    if isinstance(declared, DesiredBuilder):
        yield Reference(namespace, declared.ssh_key.name, declared.ssh_key.key), "sshKeySecretRef"


def missing_by_object(
    declarations: Iterable[Declaration], vault: Vault
) -> dict[Key, tuple[str, ...]]:
    """Sentences about references that lead nowhere."""
    found = {}
    for declaration in declarations:
        sentences = dict.fromkeys(
            f"{field}: {vault.missing[reference]}"
            for reference, field in references(declaration)
            if reference in vault.missing
        )
        if sentences:
            found[declaration.kind, declaration.identity] = tuple(sentences)
    return found


def context_of(webhook_id: UUID) -> str:
    """What the ciphertext of a webhook's secret is bound to."""
    return f"webhook_configs/{webhook_id}"


def is_stale(row: WebhookRow, namespace: str, vault: Vault) -> bool:
    """Whether a webhook keeps another value than its secret has now."""
    reference = Reference(namespace, row.secret_name, row.secret_key)
    if reference in vault.missing:
        return row.ciphertext is not None
    wanted = vault.values.get(reference)
    if wanted is None:
        return False
    if row.ciphertext is None:
        return True
    try:
        return vault.cipher.decrypt(row.ciphertext, context=context_of(row.id)) != wanted
    except CipherError:
        return True  # made with another key of the installation


def webhook_rows(
    parent_id: UUID,
    specs: Sequence[WebhookSpec],
    there: Sequence[WebhookRow],
    namespace: str,
    vault: Vault,
) -> list[WebhookRow]:
    """The rows that a parent's webhooks come to: ids stay, values are encrypted anew if stale."""
    by_forge = {row.forge: row for row in there}
    rows = []
    for spec in specs:
        old = by_forge.get(spec.forge)
        same = old is not None and (old.secret_name, old.secret_key) == (
            spec.secret.name,
            spec.secret.key,
        )
        row = WebhookRow(
            id=old.id if old else new_uuid(),
            parent_id=parent_id,
            forge=spec.forge,
            secret_name=spec.secret.name,
            secret_key=spec.secret.key,
            ciphertext=old.ciphertext if old and same else None,
            enabled=spec.enabled,
        )
        if is_stale(row, namespace, vault):
            row = _sealed(row, namespace, vault)
        rows.append(row)
    return rows


def _sealed(row: WebhookRow, namespace: str, vault: Vault) -> WebhookRow:
    value = vault.values.get(Reference(namespace, row.secret_name, row.secret_key))
    sealed = None if value is None else vault.cipher.encrypt(value, context=context_of(row.id))
    return WebhookRow(
        id=row.id,
        parent_id=row.parent_id,
        forge=row.forge,
        secret_name=row.secret_name,
        secret_key=row.secret_key,
        ciphertext=sealed,
        enabled=row.enabled,
    )
