"""Tokens of agents: one that opens a task, and one for each of its phases.

The opening token stands in the pod's definition, where others may read it, so it is good for one
thing: to open each phase once. It is derived, not stored. The agent then makes the token of its
phase itself and sends only its hash: nobody but the agent ever has it. Pure; agents use it too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from uuid import UUID

from fc_operator.model.ids import TaskId

PREFIX = "fct_"
SECRET_BYTES = 32
_TOKEN = re.compile(r"fct_([0-9a-f]{32})_([0-9A-Za-z_-]{43})")


@dataclass(frozen=True, slots=True)
class TaskToken:
    """A token whose form is right; whether it is good is another question."""

    task_id: TaskId
    secret: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """As it is sent."""
        digits = base64.urlsafe_b64encode(self.secret).rstrip(b"=").decode()
        return f"{PREFIX}{self.task_id.hex}_{digits}"

    @property
    def hash(self) -> str:
        """Hex SHA-256 of its secret: what an agent tells the server of its phase's token."""
        return hashlib.sha256(self.secret).hexdigest()

    def matches(self, token_hash: bytes | None) -> bool:
        """Whether ``token_hash`` (32 bytes, as stored) is its hash; in constant time."""
        own = hashlib.sha256(self.secret).digest()
        return hmac.compare_digest(own, token_hash or b"") and token_hash is not None


def make(task_id: TaskId) -> TaskToken:
    """A fresh token for a phase of a task."""
    return TaskToken(task_id, secrets.token_bytes(SECRET_BYTES))


def opening(task_id: TaskId, secret: bytes) -> TaskToken:
    """The opening token of a task; ``secret`` is the installation's ``cipher.derive`` of
    ``opening_purpose(task_id)``.
    """
    return TaskToken(task_id, secret)


def opening_purpose(task_id: TaskId) -> str:
    """What the secret of a task's opening token is derived for."""
    return f"open/{task_id}"


def is_same(one: TaskToken, other: TaskToken) -> bool:
    """Whether two tokens are equal; in constant time."""
    return one.task_id == other.task_id and hmac.compare_digest(one.secret, other.secret)


def parse(text: str) -> TaskToken | None:
    """The token that ``text`` is; None where it can be none."""
    found = _TOKEN.fullmatch(text)
    if found is None:
        return None
    try:
        secret = base64.urlsafe_b64decode(found[2] + "=")
    except (binascii.Error, ValueError):
        return None
    token = TaskToken(TaskId(UUID(found[1])), secret)
    # Several texts decode to the same bytes; only one is the token.
    return token if token.text == text else None


def parse_hash(text: str) -> bytes | None:
    """The 32 bytes of a hex SHA-256; None where it is none."""
    if re.fullmatch(r"[0-9a-f]{64}", text) is None:
        return None
    return bytes.fromhex(text)
