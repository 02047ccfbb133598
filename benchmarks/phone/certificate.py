"""A certificate of the server's own: browsers allow threads and WebGPU only over HTTPS."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.errors import require

DAYS = 2
"""It is made anew each time; clocks may differ by a day."""


@dataclass(frozen=True)
class Certificate:
    """Where the two PEM files lie."""

    certificate: Path
    key: Path
    fingerprint: str
    """SHA-256 of the certificate, as browsers show it."""


def make(hosts: list[str], folder: Path) -> Certificate:
    """Write a self-signed certificate for these names and addresses into `folder`.

    P-256, as RFC 5280 wants it. Raises `NotInstalledError` without the extra `phone`.
    """
    require("cryptography", "phone")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Pocket Distillery")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=DAYS))
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(key, hashes.SHA256())
    )
    found = Certificate(
        folder / "certificate.pem",
        folder / "key.pem",
        made.fingerprint(hashes.SHA256()).hex(":").upper(),
    )
    found.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    found.key.touch(mode=0o600)
    found.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return found


def _name(host: str):  # noqa: ANN202  # the package may be missing
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
