"""What can go wrong with certificates, one class per cause (codes MYC-2001 to MYC-2099)."""

from __future__ import annotations

from typing import ClassVar

from transport.errors import Blame, MeshError


class CaError(MeshError):
    """Base of this package's errors."""

    code: ClassVar[str] = "MYC-2000"
    blame: ClassVar[Blame] = Blame.LOCAL


class StateNotWritten(CaError):
    """The authority's state could not be written: disk full, read-only, or no permission."""

    code: ClassVar[str] = "MYC-2001"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class StateNotReadable(CaError):
    """A file of the authority's state is missing, unreadable or not what its name says."""

    code: ClassVar[str] = "MYC-2002"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class LoosePermissions(CaError):
    """A private file or its folder may be read or changed by others."""

    code: ClassVar[str] = "MYC-2003"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class KeyMismatch(CaError):
    """A certificate and the private key beside it do not match, or its signer is no root of ours."""

    code: ClassVar[str] = "MYC-2004"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class AuthorityExpired(CaError):
    """The root or the issuing CA is outside its validity, or the clock is wrong."""

    code: ClassVar[str] = "MYC-2005"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class WrongTrustDomain(CaError):
    """The state, or an identity, is of another trust domain than the one configured."""

    code: ClassVar[str] = "MYC-2006"
    blame: ClassVar[Blame] = Blame.POLICY


class CsrRejected(CaError):
    """A certificate signing request breaks the rules."""

    code: ClassVar[str] = "MYC-2007"
    blame: ClassVar[Blame] = Blame.REMOTE


class LifetimeTooLong(CaError):
    """A certificate was asked for with a lifetime above the maximum."""

    code: ClassVar[str] = "MYC-2008"
    blame: ClassVar[Blame] = Blame.REMOTE


class NodeTokenRejected(CaError):
    """A node's bearer token is missing, malformed, forged, expired, or for another purpose."""

    code: ClassVar[str] = "MYC-2009"
    blame: ClassVar[Blame] = Blame.REMOTE


class InvalidNodeName(CaError):
    """A text that should name a node cannot."""

    code: ClassVar[str] = "MYC-2010"
    blame: ClassVar[Blame] = Blame.POLICY


class TrustNotUsable(CaError):
    """A trust bundle holds no usable root, or its source cannot be read."""

    code: ClassVar[str] = "MYC-2011"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class TokenNotReadable(CaError):
    """The file with this node's token cannot be read."""

    code: ClassVar[str] = "MYC-2012"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class ResponseInvalid(CaError):
    """The CA's answer is empty, has no root, is for another identity or another key, or is no certificate."""

    code: ClassVar[str] = "MYC-2013"
    blame: ClassVar[Blame] = Blame.REMOTE


class CredentialUnavailable(CaError):
    """There is no valid certificate for an identity; the text says why the last attempt failed."""

    code: ClassVar[str] = "MYC-2014"
    blame: ClassVar[Blame] = Blame.REMOTE


class CredentialForgotten(CaError):
    """An identity was dropped while somebody waited for its certificate."""

    code: ClassVar[str] = "MYC-2015"


class TooManyIdentities(CaError):
    """More identities are wanted than this process keeps certificates for."""

    code: ClassVar[str] = "MYC-2016"


class JoinTokenMalformed(CaError):
    """A join token is damaged, or was asked for with impossible numbers."""

    code: ClassVar[str] = "MYC-2020"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT
