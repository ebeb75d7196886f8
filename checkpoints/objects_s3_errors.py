"""What an S3 endpoint's many ways to say no mean to us: a code, whether to try again, and the cure.

Neither a key nor a token may reach a log: of what the other side wrote only its error code is kept,
and the foreign exception is not chained.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..logbook.errors import Fatal, MidwatchError, Retryable


class _Meaning(msgspec.Struct, frozen=True):
    code: str
    remedy: str
    delay_s: float | None
    """How long to wait at least before the next try; None: trying again will not help."""


_EXPIRED = _Meaning(
    "credentials-expired",
    "They are read again at each try; renew them where the standard chain finds them.",
    1.0,
)
_DENIED = _Meaning(
    "store-denied", "Grant the run what docs/checkpoints.md lists; it goes on by itself then.", None
)
_BUCKET = _Meaning("bucket-missing", "Create the bucket or correct checkpoints.store.url.", None)
_SKEW = _Meaning("store-clock-skew", "Set the node's clock (NTP); uploads go on by then.", 5.0)
_BUSY = _Meaning("store-busy", "Nothing, or lower checkpoints.store.concurrency.", 1.0)
_SERVER = _Meaning("store-error", "Nothing: it is tried again.", 0.2)
_DAMAGED = _Meaning("upload-damaged", "Nothing: the part is sent again.", 0.0)
_LOST = _Meaning("upload-lost", "Nothing: the file is sent again from its beginning.", 0.0)
_CONFLICT = _Meaning("store-conflict", "Nothing: it is tried again.", 0.2)
_REFUSED = _Meaning("store-refused", "See docs/checkpoints.md for what the endpoint must do.", None)
_MISSING = _Meaning(
    "credentials-missing",
    "Give the run credentials by the standard chain: environment, profile, instance role.",
    None,
)
_UNREACHABLE = _Meaning("store-unreachable", "Check endpoint, network and certificates.", 0.2)

_MEANINGS: dict[str, _Meaning] = {
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"), _EXPIRED
    ),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AllAccessDisabled",
            "AccountProblem",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "Forbidden",
            "401",
            "403",
        ),
        _DENIED,
    ),
    "NoSuchBucket": _BUCKET,
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestExpired"), _SKEW),
    **dict.fromkeys(
        (
            "SlowDown",
            "Throttling",
            "ThrottlingException",
            "RequestLimitExceeded",
            "TooManyRequests",
        ),
        _BUSY,
    ),
    **dict.fromkeys(
        ("InternalError", "ServiceUnavailable", "RequestTimeout", "IncompleteBody"), _SERVER
    ),
    **dict.fromkeys(
        ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest"),
        _DAMAGED,
    ),
    **dict.fromkeys(("NoSuchUpload", "InvalidPart", "InvalidPartOrder"), _LOST),
    **dict.fromkeys(("ConditionalRequestConflict", "OperationAborted"), _CONFLICT),
}

NOT_FOUND = frozenset({"NoSuchKey", "NotFound", "404"})
PAST_END = frozenset({"InvalidRange", "416"})
EXISTS = frozenset({"PreconditionFailed", "412"})
NO_UPLOAD = frozenset({"NoSuchUpload", *NOT_FOUND})
UNSUPPORTED = frozenset({"NotImplemented", "501"})


_FOREIGN = frozenset({"boto3", "botocore", "s3transfer", "urllib3"})


def is_foreign(error: Exception) -> bool:
    """Whether an error came from the other side or the way there, and not from a bug of ours."""
    return type(error).__module__.partition(".")[0] in _FOREIGN or isinstance(error, OSError)


def error_code(error: Exception) -> str:
    """Return the code that the endpoint answered with, "" when it did not answer."""
    response: Any = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def translate(error: Exception, what: str) -> MidwatchError:
    """Return a botocore error as one of ours. what: what was tried, e.g. "put a/b"."""
    said = error_code(error)
    status = _status(error)
    meaning = _MEANINGS.get(said) or _by_status(error, status)
    words = f"{said or type(error).__name__}{f' ({status})' if status else ''}"
    message = f"cannot {what}: {words}."
    if meaning.delay_s is None:
        return Fatal(meaning.code, message, remedy=meaning.remedy)
    return Retryable(meaning.code, message, delay_s=meaning.delay_s, remedy=meaning.remedy)


def _status(error: Exception) -> int:
    response: Any = getattr(error, "response", None) or {}
    if not isinstance(response, dict):
        return 0
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _by_status(error: Exception, status: int) -> _Meaning:
    if status in (429, 503):
        return _BUSY
    if status >= 500:
        return _SERVER
    if status in (401, 403):
        return _DENIED
    if status >= 400:
        return _REFUSED
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return _MISSING
    if name in ("CredentialRetrievalError", "MetadataRetrievalError", "TokenRetrievalError"):
        return _EXPIRED
    if name in ("ParamValidationError", "InvalidEndpointError", "InvalidConfigError"):
        return _REFUSED
    return _UNREACHABLE
