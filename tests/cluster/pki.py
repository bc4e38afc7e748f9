"""Keys, certificates and tokens of one cluster, made anew each time it starts."""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAYS = dt.timedelta(days=30)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def write_private(path: Path, data: bytes) -> None:
    """A file that nobody else can read, at no moment."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(data)


def make_service_account_key(folder: Path) -> None:
    """``service-accounts.key`` signs their tokens, ``service-accounts.pub`` checks them."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    write_private(folder / "service-accounts.key", _private(key))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "service-accounts.pub").write_bytes(public)


class Authority:
    """Issues the certificates of one cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("fc-cluster")
        certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            # Python 3.13 and later believes no authority that does not say so.
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        file: str,
        common_name: str,
        *,
        organization: str | None = None,
        addresses: Sequence[str] = (),
        names: Sequence[str] = (),
    ) -> None:
        """Write ``<file>.crt`` and ``<file>.key``; with addresses it is a server's."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(common_name, organization), self._name, key, issuer_key=self._key)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if addresses else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if addresses or names:
            known: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
            known += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(known), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        write_private(self._folder / f"{file}.key", _private(key))
        (self._folder / f"{file}.crt").write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
        )


def make_tokens(users: Sequence[tuple[str, str, str]]) -> tuple[str, dict[str, str]]:
    """Text of the API server's token file, and each token by its label.

    ``users`` are (label, user, groups separated by comma).
    """
    tokens = {label: secrets.token_urlsafe(24) for label, _, _ in users}
    lines = [f'{tokens[label]},{user},{user},"{groups}"' for label, user, groups in users]
    return "\n".join(lines) + "\n", tokens


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer_key: ec.EllipticCurvePrivateKey | None = None,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    authority = (issuer_key or key).public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + _DAYS)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False
        )
    )


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
