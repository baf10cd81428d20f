"""Keys and strangers: files only their owner reads, and nobody in without a certificate of this run, or as another."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from transport_ends import Ends, message, run, until

from harness.errors import TransportError
from harness.transport import tls
from harness.transport.endpoint import connect
from harness.transport.outgoing import ARRIVED, LOST


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    tls.make(tmp_path / "keys", ["server", "device-0", "device-1"])
    return tmp_path / "keys"


def test_private_keys_are_their_owners_from_the_first_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, int] = {}
    real = os.open

    def spy(path: Path, flags: int, mode: int = 0o777) -> int:
        opened[Path(path).name] = mode
        assert flags & os.O_EXCL
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", spy)
    monkeypatch.setattr(os, "chmod", None)
    before = os.umask(0)
    try:
        tls.make(tmp_path / "keys", ["server", "device-0"])
    finally:
        os.umask(before)
    assert opened["server.key"] == opened["device-0.key"] == 0o600
    for path in (tmp_path / "keys").glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    written = sorted(path.name for path in (tmp_path / "keys").iterdir())
    assert written == ["authority.pem", "device-0.key", "device-0.pem", "server.key", "server.pem"]
    assert b"PRIVATE" not in (tmp_path / "keys" / "authority.pem").read_bytes()


def test_a_certificate_names_its_node_and_signs_no_other(keys: Path) -> None:
    certificate = x509.load_pem_x509_certificate((keys / "device-0.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["device-0"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_keys_are_refused_when_others_can_read_them_or_they_are_missing(keys: Path) -> None:
    (keys / "device-0.key").chmod(0o640)
    with pytest.raises(TransportError, match="can be read by others"):
        tls.client_context(keys, "device-0")
    with pytest.raises(TransportError, match="device-9: the certificate in"):
        tls.server_context(keys, "device-9")
    with pytest.raises(TransportError, match="there already"):
        tls.make(keys, ["server"])


@pytest.mark.parametrize("name", ["../server", "a b", "", "authority", "-x", "a" * 64])
def test_names_that_cannot_be_in_a_certificate_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TransportError, match="no certificate for a node called"):
        tls.make(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


def stranger(kind: str, keys: Path, other: Path) -> ssl.SSLContext | None:
    """What somebody brings who is not of this run."""
    if kind == "plain":
        return None
    if kind == "foreign":
        return tls.client_context(other, "device-0")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(keys / tls.AUTHORITY)
    if kind == "foreign, trusting us":
        context.load_cert_chain(other / "device-0.pem", other / "device-0.key")
    if kind == "old":
        context.load_cert_chain(keys / "device-0.pem", keys / "device-0.key")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize("kind", ["plain", "nothing", "foreign", "foreign, trusting us", "old"])
def test_strangers_are_refused_and_told_of_and_the_run_goes_on(kind: str, keys: Path, tmp_path: Path) -> None:
    tls.make(tmp_path / "other", ["server", "device-0"])

    async def scenario() -> None:
        pair = Ends()
        await pair.listen(keys, handshake_s=0.3)
        channel = await pair.connect(keys)
        with pytest.raises(TransportError):
            await connect(
                "device-0",
                "server",
                "127.0.0.1",
                pair.listener.port,
                tls=stranger(kind, keys, tmp_path / "other"),
                timeout_s=10.0,
            )
        await until(lambda: pair.strangers)
        assert "was refused" in str(pair.strangers[0])
        assert not pair.arrivals
        assert (await channel.post(message(1)).settled).status == ARRIVED
        await channel.close()
        await pair.listener.close()

    run(scenario)


def test_a_node_that_claims_another_name_is_refused(keys: Path) -> None:
    async def scenario() -> None:
        pair = Ends()
        await pair.listen(keys)
        impostor = await connect(
            "device-0", "server", "127.0.0.1", pair.listener.port, tls=tls.client_context(keys, "device-1")
        )
        transfer = await impostor.post(message(1)).settled
        assert transfer.status == LOST
        assert "claims to be 'device-0'" in str(transfer.error)
        assert not pair.arrivals
        await until(lambda: pair.incoming_closed)
        assert "certificate says otherwise" in str(pair.incoming_closed[0])
        await pair.listener.close()

    run(scenario)


def test_a_server_that_is_somebody_else_is_not_talked_to(keys: Path) -> None:
    async def scenario() -> None:
        pair = Ends()
        await pair.listen(keys)
        with pytest.raises(TransportError, match=r"cannot reach device-1 .*(ostname|match)"):
            await connect(
                "device-0", "device-1", "127.0.0.1", pair.listener.port, tls=tls.client_context(keys, "device-0")
            )
        await pair.listener.close()

    run(scenario)


def test_the_connection_is_tls_1_3(keys: Path) -> None:
    async def scenario() -> None:
        pair = Ends()
        await pair.listen(keys)
        channel = await pair.connect(keys)
        assert channel._transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        await asyncio.sleep(0)
        await channel.close()
        await pair.listener.close()

    run(scenario)
