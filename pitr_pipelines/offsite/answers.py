"""What the store's answer to the write means: stored, refused for certain, or not known.

Only what is certain is called so, since the ledger's states are final:

- **stored**: a success with an ETag, and with our own checksum if it names one. A success without an ETag
  is not S3's (a captive portal, an interim answer taken for the last): unknown. One who answers with an ETag
  of his own is believed here: settling.py looks at the store before the ledger says confirmed.
- **refused**: nothing of the object left this machine (no route, name, TLS or credentials: the body was
  not begun, and a request without its body makes no object); or we held the end of the body back ourselves;
  or the store answered with a 4xx, which S3 gives instead of storing: 403, 404 NoSuchBucket, 400 (a checksum
  that differs, an expired token); or it told us to come back: 503 SlowDown or ServiceUnavailable, 501; or
  that the bucket lives elsewhere: 301 PermanentRedirect.
- **unknown**: everything else. No answer after the body was begun (time-out, reset), since it may have
  arrived; 500, 502 and 504, which S3 or something before it gives when it does not know either; 503 without
  S3's words; 408; another redirect, since the one who sends it may have stored the object; 412 and 409: the
  name is taken, but a proxy that repeats requests on its own may have let our object take it. A look at the
  store settles these (settling.py).

Nothing here sends or reads anything. No text here holds a secret: what a server said is shown only with
the known secrets taken out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pitr_pipelines.errors import PitrError


class Verdict(StrEnum):
    """What became of the write."""

    STORED = "stored"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of the one write.

    `said` is what happened, for the ledger; `remedy` what to do next, empty if it was stored. `code` is
    S3's word or the HTTP status, where there was an answer. `checksum_sha256` is in base64.
    """

    verdict: Verdict
    said: str
    remedy: str = ""
    code: str | None = None
    etag: str | None = None
    version_id: str | None = None
    checksum_sha256: str | None = None


class StoreUnavailable(PitrError):
    """The store does not answer, or does not let us read. Nothing was changed.

    `code` is S3's word, where there was an answer; `forbidden` tells that we may not look (401, 403).
    """

    exit_code = 12

    def __init__(self, what: str, *, remedy: str, code: str | None = None, forbidden: bool = False) -> None:
        super().__init__(what, remedy=remedy)
        self.code = code
        self.forbidden = forbidden


class SecondWrite(PitrError):
    """A second write request was about to leave. It was stopped."""

    exit_code = 11


_SAFE_TO_REFUSE = {
    "PermanentRedirect",
    "SlowDown",
    "ServiceUnavailable",
    "NotImplemented",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
"""S3's words that mean "not stored", whatever the status they come with."""

NAME_TAKEN = "PreconditionFailed"
"""S3's word for 412: there is an object of that name, and it was left alone."""

_PERHAPS_OURS = {NAME_TAKEN, "ConditionalRequestConflict", "NoSuchUpload"}
"""Answers to a second of two equal requests, should something on the way have made two of ours."""

_CREDENTIALS = (
    "Look at the credentials that boto3 finds here (environment, ~/.aws, `profile`): "
    "`aws sts get-caller-identity` with the same settings shows whose they are."
)
_REGION = "Set `region` (and `endpoint_url`, if it is set) to where the bucket is."

_DAMAGED = (
    "What arrived is not what was sent, and it was not stored. If it happens again, look at the memory here "
    "and the network between here and there."
)
_FORBIDDEN = (
    "The store does not say why. Are the credentials those of the bucket, still valid, the clock of this "
    "machine right, and may they do s3:GetObject and s3:ListBucket? Without the latter, S3 answers 403 for "
    "an object that is not there."
)

_REMEDIES = {
    NAME_TAKEN: "An object of that name is there and was left alone. Is another machine writing to "
    "the same bucket and prefix? Give each its own `prefix`.",
    "ConditionalRequestConflict": "Somebody writes the same name at the same time. Give each machine its own "
    "`prefix`.",
    "InvalidObjectState": "The object lies in an archive class of the store: have it brought back first "
    "(`aws s3api restore-object`), which takes hours.",
    "AccessDenied": "The credentials are valid but may not do this: allow s3:PutObject (s3:GetObject and "
    "s3:ListBucket to read; also PutObjectTagging and PutObjectRetention where configured, and "
    "AbortMultipartUpload for unit `upload`), look at the key's policy if `sse` is aws:kms, and at whose "
    "bucket it is.",
    "SignatureDoesNotMatch": "The secret key is not that of the access key. " + _CREDENTIALS,
    "InvalidAccessKeyId": "The store does not know the access key. " + _CREDENTIALS,
    "ExpiredToken": "The session is over: get new credentials (`aws sso login`, or whatever issues them).",
    "InvalidToken": "The session token is not valid: get new credentials.",
    "RequestTimeTooSkewed": "The clock of this machine is off by more than 15 minutes: set it "
    "(`timedatectl`, NTP), then look whether the days on the ledger are right.",
    "NoSuchBucket": "Make the bucket, or correct `bucket`, `region` or `endpoint_url`: buckets are never "
    "made by this software.",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "EntityTooLarge": "The store does not take objects of this size in one request.",
    "BadDigest": _DAMAGED,
    "InvalidDigest": _DAMAGED,
    "XAmzContentChecksumMismatch": _DAMAGED,
    "InvalidRequest": "The store does not accept what is configured: look at object_lock (the bucket must be "
    "made with it), sse, storage_class and tags.",
    "NotImplemented": "The store lacks something that is configured or needed: conditional writes, trailing "
    "checksums, object_lock, sse, storage_class or tags.",
    "SlowDown": "The store is busy. What was not delivered goes with the next call.",
    "ServiceUnavailable": "The store is down. What was not delivered goes with the next call.",
}
_WHEN_READING = {
    "NoSuchBucket": "Correct `bucket`, `region` or `endpoint_url`: those of the backups.",
    "SlowDown": "The store is busy. Ask again in a while.",
    "ServiceUnavailable": "The store is down. Ask again in a while.",
}
LATER = "What was not delivered goes with the next call."
_LOOK = "A look at the store will tell; it is never sent a second time."

_TROUBLE = {
    "NoCredentialsError": ("no credentials were found", _CREDENTIALS),
    "PartialCredentialsError": ("the credentials are incomplete", _CREDENTIALS),
    "CredentialRetrievalError": ("the credentials could not be fetched", _CREDENTIALS),
    "TokenRetrievalError": ("the session is over", "Log in again (`aws sso login`)."),
    "SSOTokenLoadError": ("the session is over", "Log in again (`aws sso login`)."),
    "UnauthorizedSSOTokenError": ("the session is over", "Log in again (`aws sso login`)."),
    "NoRegionError": ("it is not known in which region the bucket is", "Set `region`."),
    "EndpointConnectionError": (
        "the store could not be reached",
        "Look at `endpoint_url`, the name service, the route and the firewall.",
    ),
    "ConnectTimeoutError": (
        "the store could not be reached in time",
        "Look at `endpoint_url`, the route, the firewall and `proxies`.",
    ),
    "ProxyConnectionError": (
        "the proxy could not be reached, or refused",
        "Look at `proxies` or HTTPS_PROXY.",
    ),
    "SSLError": (
        "no trusted TLS connection",
        "Is the endpoint's certificate signed by one in `ca_bundle` (default: boto3's own), made out to the "
        "name in `endpoint_url`, and valid by this machine's clock?",
    ),
    "ReadTimeoutError": ("no answer came in time", "Look at the network; `answer_timeout_s` is the limit."),
    "ConnectionClosedError": ("the connection broke", "Look at the network and the store."),
}


def of_success(response: dict[str, Any], checksum: str) -> Outcome:
    """Return what a response that botocore takes for a success means; `checksum` is what was sent."""
    etag = response.get("ETag")
    if not etag:
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return Outcome(
            Verdict.UNKNOWN, f"an answer {status} that is not S3's: it has no ETag", _LOOK, code=str(status)
        )
    theirs = response.get("ChecksumSHA256")
    # Of an object in parts, it is that of the parts' checksums, and their number behind it.
    if theirs and theirs.partition("-")[0] != checksum.partition("-")[0]:
        return Outcome(
            Verdict.UNKNOWN,
            f"the store says that it stored something else: SHA-256 {theirs}, and {checksum} was sent",
            "Download the object and look at it before you trust it.",
            etag=etag,
        )
    return Outcome(
        Verdict.STORED,
        f"stored, ETag {etag}",
        etag=etag,
        version_id=response.get("VersionId"),
        checksum_sha256=checksum,
    )


def of_answer(status: int, code: str, message: str) -> Outcome:
    """Return what a store's error means for the write: its HTTP status, S3's word and text."""
    certain = 400 <= status < 500 and status != 408 and code != "RequestTimeout"
    certain = certain or (code in _SAFE_TO_REFUSE and status != 500)
    said = said_by(status, code, message)
    if status in (409, 412) or code in _PERHAPS_OURS:
        # Without a body, botocore gives the status for S3's word.
        word = NAME_TAKEN if status == 412 else code
        return Outcome(Verdict.UNKNOWN, said, remedy_of(word, status), code=word)
    if certain:
        return Outcome(Verdict.REFUSED, said, remedy_of(code, status), code=code)
    return Outcome(Verdict.UNKNOWN, said, _LOOK, code=code)


def is_answer(error: BaseException) -> bool:
    """Tell whether botocore's error is an answer of the store, and not the want of one."""
    from botocore.exceptions import ClientError

    return isinstance(error, ClientError)


def status_of(error: Any) -> int:
    """Return the HTTP status of an error that is an answer; 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def of_error(error: Any, *, started: bool) -> Outcome:
    """Return what it means for the write that botocore raised; `started`: was the body begun?"""
    if is_answer(error):
        answer = error.response.get("Error", {})
        return of_answer(status_of(error), answer.get("Code", ""), answer.get("Message", ""))
    return of_trouble(error, started=started)


def of_trouble(error: BaseException, *, started: bool) -> Outcome:
    """Return what a failure without an answer means; `started`: was the body begun?"""
    said, remedy = trouble(error)
    if started:
        return Outcome(Verdict.UNKNOWN, f"{said} after the upload had begun", f"{remedy} {_LOOK}")
    return Outcome(Verdict.REFUSED, f"{said}; nothing of the object was sent", f"{remedy} {LATER}")


def of_held_back(reason: str) -> Outcome:
    """Return what it means that we did not send the end of the body."""
    return Outcome(
        Verdict.REFUSED,
        f"the object could not be read as announced, and its end was not sent: {reason}",
        "Does something else write to the artifacts, or is the disk failing? " + LATER,
    )


def said_by(status: int, code: str, message: str) -> str:
    """Return a store's error in one line; without a body, botocore gives the status for S3's word."""
    word = "" if code == str(status) else f" {code}"
    return f"the store answered {status}{word}" + (f": {message}" if message else "")


def remedy_of(code: str, status: int, *, reading: bool = False) -> str:
    """Return what to do about S3's word for an error."""
    if code in _REMEDIES:
        return _WHEN_READING.get(code, _REMEDIES[code]) if reading else _REMEDIES[code]
    if status in (401, 403):
        # What HEAD is answered, which has no body to say more in.
        return _FORBIDDEN
    if status == 412:
        return _REMEDIES[NAME_TAKEN]
    remedy = "Look up the store's word for it, and the settings of the off-site copy."
    return remedy if reading else f"{remedy} {LATER}"


def trouble(error: BaseException) -> tuple[str, str]:
    """Return what a failure without an answer is, in our own words, and what to do about it."""
    for kind in type(error).__mro__:
        if kind.__name__ in _TROUBLE:
            what, remedy = _TROUBLE[kind.__name__]
            cause = getattr(error, "kwargs", {}).get("error")
            return (f"{what}{_reason(cause)}" if cause is not None else what), remedy
    return f"{type(error).__name__}: {error}", "Look at the settings of the off-site copy and the network."


def without_secrets(text: str, secrets: Iterable[str | None]) -> str:
    """Return a text with each of the secrets taken out, should somebody have echoed one."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and whatever it was made of, as botocore and urllib3 wrap them."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop()
        if isinstance(found, BaseException) and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [getattr(found, "kwargs", {}).get("error"), found.__cause__, found.__context__]
            waiting += list(found.args)


def _reason(cause: object) -> str:
    """Return the system's own word for it, if it has one: urllib3's texts hold addresses of objects."""
    for found in causes(cause) if isinstance(cause, BaseException) else ():
        for deeper in (found, getattr(found, "reason", None)):
            if isinstance(deeper, OSError) and deeper.strerror:
                return f" ({deeper.strerror})"
    return ""
