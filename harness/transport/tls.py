"""Mutual TLS 1.3 with an authority that lives as long as a run's preparation.

The authority's private key never leaves memory: when all certificates are made it is forgotten, so nobody can make
another one for this run. Each node's private key is a file that only its owner may read, from the moment it exists.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from harness.errors import TransportError

AUTHORITY = "authority.pem"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_VALID_DAYS = 365
_SKEW = timedelta(days=1)  # clocks of boards


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: str, issuer: str, key: Any) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(subject))
        .issuer_name(_subject(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(**said: bool) -> x509.KeyUsage:
    parts = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{part: said.get(part, False) for part in parts})


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a new file that has this mode from its first instant."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def make(folder: Path, names: Iterable[str]) -> None:
    """Make an authority for a run and a certificate for each node, in a new folder that only its owner may enter.

    Files: `authority.pem`, and `NAME.pem` and `NAME.key` for each node. A node needs its own two and the authority's.

    Raises:
        TransportError: the folder is there already, or a name cannot be in a certificate.
    """
    names = list(names)
    for name in names:
        if not _NAME.fullmatch(name) or f"{name}.pem" == AUTHORITY:
            raise TransportError(
                f"no certificate for a node called {name!r}; use letters, digits and hyphens, at most 63"
            )
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise TransportError(f"{folder} is there already; give each run a folder of its own for its keys") from None
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = "the authority of a run"
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    certificate = (
        _builder(issuer, issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    _write(folder / AUTHORITY, certificate.public_bytes(pem), 0o644)
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(name, issuer, key)
            .add_extension(identifier, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(authority, hashes.SHA256())
        )
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write(folder / f"{name}.key", private, 0o600)
        _write(folder / f"{name}.pem", certificate.public_bytes(pem), 0o644)


def _context(protocol: int, folder: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    key = folder / f"{name}.key"
    try:
        if key.stat().st_mode & 0o077:
            raise TransportError(f"{key} can be read by others; make the run's keys anew, or chmod 600 it")
        context.load_verify_locations(folder / AUTHORITY)
        context.load_cert_chain(folder / f"{name}.pem", key)
    except OSError as error:  # ssl.SSLError is one
        raise TransportError(f"{name}: the certificate in {folder} cannot be used ({error})") from None
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def server_context(folder: Path, name: str) -> ssl.SSLContext:
    """Return the context of the listening side: a peer needs a certificate of the run's authority.

    Raises:
        TransportError: the files are missing, wrong, or the key can be read by others.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, folder, name)
    context.num_tickets = 0  # no session is ever resumed
    return context


def client_context(folder: Path, name: str) -> ssl.SSLContext:
    """Return the context of the connecting side: the peer's certificate must name whom we want to reach.

    Raises:
        TransportError: as `server_context`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, folder, name)
    context.hostname_checks_common_name = False
    return context


def peer_names(transport: Any) -> frozenset[str]:
    """Return the node names in the peer's certificate (without TLS: none)."""
    certificate = transport.get_extra_info("peercert") or {}
    return frozenset(value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS")
