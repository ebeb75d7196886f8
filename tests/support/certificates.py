"""Certificates for tests: of this machine's own name, signed by themselves."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def write_certificate(folder: Path, serial: int) -> tuple[Path, Path]:
    """Write cert.pem and key.pem for 127.0.0.1 into folder, each whole at once; return both."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "midwatch")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    kind = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pems = {
        folder / "cert.pem": certificate.public_bytes(serialization.Encoding.PEM),
        folder / "key.pem": key.private_bytes(serialization.Encoding.PEM, *kind),
    }
    for path, pem in pems.items():
        draft = path.with_suffix(".draft")
        draft.write_bytes(pem)
        draft.replace(path)
    return folder / "cert.pem", folder / "key.pem"
