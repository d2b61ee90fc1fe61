"""Who made a certificate: an Ed25519 signature, for a server that serves those of its operator alone.

A hash shows an edit by hand, and whoever edits can hash anew; a signature takes the private key. Keys are PEM files, as
`openssl genpkey -algorithm ed25519` writes them. What a signature is of is the certificate's SHA-256.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from reasonrt.errors import CalibrationError, ConfigError
from reasonrt.files import FileKind
from reasonrt.policies.stopping.certificate import Certificate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_KEY = FileKind(ConfigError, "name another file", most_bytes=1 << 16)
_PURPOSE = "reasonrt.certificate "  # so that a signature of ours is never one of anything else


def sign(certificate: Certificate, private_key: Path) -> Certificate:
    """The same certificate with a signature.

    Raises:
        ConfigError: the file holds no Ed25519 private key that can be read without a password.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise _missing() from None
    try:
        key = load_pem_private_key(_KEY.read_bytes(private_key), None)
    except (TypeError, ValueError, UnsupportedAlgorithm):  # whose texts may quote the file
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{private_key} holds no Ed25519 private key without a password; make one with "
            "`openssl genpkey -algorithm ed25519`"
        )
    return replace(certificate, signature=key.sign(_message(certificate)).hex())


@dataclass(frozen=True)
class PublicKeys:
    """Those whose signature is asked for; without any, none is."""

    keys: "Sequence[Ed25519PublicKey]" = ()

    @classmethod
    def read(cls, files: Sequence[Path]) -> Self:
        """Raises: ConfigError: a file holds no Ed25519 public key."""
        return cls([_public_key(file) for file in files])

    def flaw(self, certificate: Certificate) -> str | None:
        """Why none of the keys vouches for `certificate`; None where one does, or none is asked for."""
        if not self.keys:
            return None
        if certificate.signature is None:
            return "it is not signed, and a signature is asked for; sign it with `reasonrt certificate sign`"
        if any(_is_by(key, certificate) for key in self.keys):
            return None
        return "its signature is by none of the keys that are trusted here; sign it again, or add its maker's key"


def check_signature(certificate: Certificate, keys: PublicKeys) -> None:
    """Raises: CalibrationError: none of the keys vouches for it."""
    if flaw := keys.flaw(certificate):
        raise CalibrationError(f"the certificate is not to be trusted: {flaw}")


def _is_by(key: "Ed25519PublicKey", certificate: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(bytes.fromhex(certificate.signature or ""), _message(certificate))
    except (InvalidSignature, ValueError):
        return False
    return True


def _public_key(file: Path) -> "Ed25519PublicKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise _missing() from None
    try:
        key = load_pem_public_key(_KEY.read_bytes(file))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{file} holds no Ed25519 public key; `openssl pkey -in PRIVATE -pubout` writes one")
    return key


def _message(certificate: Certificate) -> bytes:
    return (_PURPOSE + certificate.sha256).encode()


def _missing() -> ConfigError:
    return ConfigError("signatures need the package cryptography: pip install 'reasonrt[sign]'")
