"""A development authority and the certificates it signs, as strict clients want them.

Python 3.13 checks what older ones let pass: an authority must say that it may sign (``keyUsage``), a certificate which
key signed it (``authorityKeyIdentifier``). For production take the authority of your organisation: the files are
replaced, nothing else changes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import ConfigError
from callboard.runtime.security.nkey import write_secret

CA_DAYS = 3650
LEAF_DAYS = 397
# A clock that is a little behind must not refuse what was made a moment ago.
_EARLIER = timedelta(minutes=5)


class Authority:
    """A certificate authority in a folder: ``ca.pem`` for everybody, ``ca.key`` for nobody else."""

    def __init__(self, folder: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Use ``folder``; nothing is read or written yet."""
        self.folder = folder
        self.certificate_file = folder / "ca.pem"
        self.key_file = folder / "ca.key"
        self._clock = clock

    def ensure(self, *, rotate: bool = False) -> bool:
        """Make the authority when it is not there, or in any case with ``rotate``; return whether it is new."""
        if not rotate and self.certificate_file.exists() and self.key_file.exists():
            return False
        key = _new_key()
        name = _name("Callboard development authority")
        now = self._clock.now()
        usage = x509.KeyUsage(
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
        builder = (
            _begun(name, name, key, now=now, days=CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        self._write(self.key_file, self.certificate_file, key, _signed(builder, key))
        return True

    def issue(
        self, stem: str, *, hosts: Sequence[str] = (), days: float = LEAF_DAYS, rotate: bool = False
    ) -> tuple[Path, Path]:
        """Return certificate and key files for ``stem``, making them when they are missing or of another authority.

        Args:
            stem: Common name and name of the files, below the authority's folder.
            hosts: Names and addresses that a server goes by; without them the certificate is a client's.
            days: How long it is valid; negative makes one that has expired, for tests.
            rotate: Make new ones in any case.

        Raises:
            ConfigError: If the authority's own files cannot be read.
        """
        certificate_file, key_file = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        authority, signer = self._load()
        if not rotate and key_file.exists() and _is_good(certificate_file, authority, hosts):
            return certificate_file, key_file

        key = _new_key()
        # A server is a client of its neighbours in a cluster.
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        builder = (
            _begun(_name(stem), authority.subject, key, now=self._clock.now(), days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(_alternatives(hosts)), critical=False)
        self._write(key_file, certificate_file, key, _signed(builder, signer))
        return certificate_file, key_file

    def _load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:

        try:
            certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
            key = load_pem_private_key(self.key_file.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            message = (
                f"the authority in {self.folder} cannot be read ({type(error).__name__}): --rotate makes a new one"
            )
            raise ConfigError(message) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            message = f"{self.key_file} is no key of ours: --rotate makes a new authority"
            raise ConfigError(message)
        return certificate, key

    def _write(
        self, key_file: Path, certificate_file: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:

        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_secret(key_file, secret)
        write_secret(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
        certificate_file.chmod(0o644)


def expires_at(certificate_file: Path) -> datetime:
    """Return when a certificate ends."""
    return x509.load_pem_x509_certificate(certificate_file.read_bytes()).not_valid_after_utc


def _new_key() -> ec.EllipticCurvePrivateKey:

    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, now: datetime, days: float
) -> x509.CertificateBuilder:
    ends = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - _EARLIER)
        .not_valid_after(ends)
    )


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:

    return builder.sign(key, hashes.SHA256())


def _alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return found


def _is_good(certificate_file: Path, authority: x509.Certificate, hosts: Sequence[str]) -> bool:
    """Return whether the file holds a certificate of this authority for these hosts."""
    try:
        found = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        found.verify_directly_issued_by(authority)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    if not hosts:
        return True
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return list(names) == _alternatives(hosts)
