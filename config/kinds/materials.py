"""ConfigMap and Secret: certificates and keys for TLS to backends. Nothing else in them is read or kept."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field

from config import objects
from config.kinds.schema import Manifest, fields
from transport.tls.errors import TlsSettingsInvalid
from transport.tls.origination import revocation_lists

ROOTS: Final = "ca.crt"
CHAIN: Final = "tls.crt"
KEY: Final = "tls.key"
REVOCATIONS: Final = "ca.crl"
MAX_BYTES: Final = 256 * 1024  # of one entry


class CertificateMap(Manifest):
    """A ConfigMap that is not the mesh's configuration."""

    unread = fields("binaryData immutable")
    data: dict[str, str] = Field(default_factory=dict, repr=False)

    def to_object(self) -> objects.TlsMaterial:
        return _material(self, {name: self.data.get(name, "") for name in (ROOTS, REVOCATIONS)})


class Secret(Manifest):
    unread = fields("immutable type")
    data: dict[str, str] = Field(default_factory=dict, repr=False)
    plain: dict[str, str] = Field(default_factory=dict, alias="stringData", repr=False)

    def to_object(self) -> objects.TlsMaterial:
        found: dict[str, str] = {}
        for name in (ROOTS, CHAIN, KEY, REVOCATIONS):
            text = self.plain.get(name)
            if text is None:
                try:
                    text = base64.b64decode(self.data.get(name, "")).decode("ascii")
                except (binascii.Error, ValueError):
                    return objects.TlsMaterial(self.meta(), problem=f"{name} is not PEM in base64")
            found[name] = text
        return _material(self, found)


def _material(manifest: Manifest, texts: dict[str, str]) -> objects.TlsMaterial:
    meta = manifest.meta()
    try:
        for name, text in texts.items():
            if len(text) > MAX_BYTES:
                return objects.TlsMaterial(meta, problem=f"{name} has more than {MAX_BYTES} bytes")
            if text and name == KEY:
                load_pem_private_key(text.encode(), None)
            elif text and name == REVOCATIONS:
                revocation_lists(text)
            elif text:
                x509.load_pem_x509_certificates(text.encode())
    except (ValueError, TypeError, TlsSettingsInvalid):
        return objects.TlsMaterial(meta, problem=f"{name} is not PEM that can be used")
    held = (texts.get(name, "") for name in (ROOTS, CHAIN, KEY, REVOCATIONS))
    return objects.TlsMaterial(meta, *held)
