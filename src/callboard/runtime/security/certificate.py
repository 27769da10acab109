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
from typing import TYPE_CHECKING

from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import ConfigError
from callboard.runtime.security.nkey import missing, write_secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, Name

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
        """Make the authority when it is not there, or in any case with ``rotate``; return whether it is new.

        Raises:
            MissingExtraError: If the package ``cryptography`` is not installed.
        """
        if not rotate and self.certificate_file.exists() and self.key_file.exists():
            return False
        x509 = _library()
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
        x509 = _library()
        from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415 - an extra

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

    def _load(self) -> tuple[Certificate, EllipticCurvePrivateKey]:
        x509 = _library()
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - an extra

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
        self, key_file: Path, certificate_file: Path, key: EllipticCurvePrivateKey, certificate: Certificate
    ) -> None:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - an extra

        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_secret(key_file, secret)
        write_secret(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
        certificate_file.chmod(0o644)


def expires_at(certificate_file: Path) -> datetime:
    """Return when a certificate ends."""
    x509 = _library()
    return x509.load_pem_x509_certificate(certificate_file.read_bytes()).not_valid_after_utc


def _library():  # type: ignore[no-untyped-def]  # noqa: ANN202 - a module
    try:
        from cryptography import x509  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise missing() from error
    return x509


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - an extra

    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> Name:
    x509 = _library()
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _begun(
    subject: Name, issuer: Name, key: EllipticCurvePrivateKey, *, now: datetime, days: float
) -> CertificateBuilder:
    x509 = _library()
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


def _signed(builder: CertificateBuilder, key: EllipticCurvePrivateKey) -> Certificate:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - an extra

    return builder.sign(key, hashes.SHA256())


def _alternatives(hosts: Sequence[str]) -> list[object]:
    x509 = _library()
    found: list[object] = []
    for host in dict.fromkeys(hosts):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return found


def _is_good(certificate_file: Path, authority: Certificate, hosts: Sequence[str]) -> bool:
    """Return whether the file holds a certificate of this authority for these hosts."""
    x509 = _library()
    try:
        found = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        found.verify_directly_issued_by(authority)
    except (OSError, ValueError, TypeError):
        return False
    except Exception:  # noqa: BLE001 - the library's InvalidSignature, which has no base class of its own
        return False
    if not hosts:
        return True
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return list(names) == _alternatives(hosts)
