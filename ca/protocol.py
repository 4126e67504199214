"""The wire of IstioCertificateService that client and service share (ztunnel-facts 6.1)."""

from __future__ import annotations

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
MAX_REQUEST_BYTES = 64 * 1024
IMPERSONATED_IDENTITY = "ImpersonatedIdentity"
