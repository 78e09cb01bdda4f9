"""Clients of the store, and the guard on the one that writes.

The promise: of the write client's requests only those leave that were allowed beforehand, by kind and number,
and they are allowed once. The guard sits where requests are handed to the connection, below botocore's
retries and redirects, and stops every other before its first byte. Region redirects, which botocore would
first ask the bucket about, are not followed.

Nothing here is printed with a secret in it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pitr_pipelines.errors import SettingsError
from pitr_pipelines.offsite import answers
from pitr_pipelines.offsite.answers import SecondWrite
from pitr_pipelines.offsite.framing import FramedBody
from pitr_pipelines.offsite_settings import Place

if TYPE_CHECKING:
    import boto3
    from botocore.client import BaseClient

PUT = "PutObject"
CREATE = "CreateMultipartUpload"
PART = "UploadPart"
COMPLETE = "CompleteMultipartUpload"
ABORT = "AbortMultipartUpload"

_METHODS = {
    PUT: "put_object",
    CREATE: "create_multipart_upload",
    PART: "upload_part",
    COMPLETE: "complete_multipart_upload",
    ABORT: "abort_multipart_upload",
}


class WriteClient:
    """Sends what was allowed, and nothing else. `requests` counts, by kind, what left."""

    def __init__(self, session: boto3.Session, place: Place) -> None:
        self.client = client_of(session, place, attempts=1)
        self.requests: Counter[str] = Counter()
        self._allowed: Counter[str] | None = None
        self.client.meta.events.register_first("before-send.s3", self._guard)
        self.client.meta.events.register("before-call.s3", _stay_in_region)

    def allow(self, requests: Mapping[str, int]) -> None:
        """Allow so many requests of each kind. Raises SecondWrite if any were allowed before."""
        if self._allowed is not None:
            raise _second_write()
        self._allowed = Counter(requests)

    def send(
        self, operation: str, parameters: Mapping[str, Any], body: FramedBody | None = None
    ) -> dict[str, Any]:
        """Send one request, with a body in frames if there is one, and return the answer.

        Raises what botocore raises, and SecondWrite if it is not allowed.
        """
        event = f"before-sign.s3.{operation}"

        def as_frames(request: Any, **_: Any) -> None:
            # Just before signing: botocore itself would read a body over http twice, to sum it and to sign.
            assert body is not None
            body.put_into(request)

        if body is not None:
            self.client.meta.events.register(event, as_frames)
        try:
            answer: dict[str, Any] = getattr(self.client, _METHODS[operation])(**parameters)
            return answer
        finally:
            if body is not None:
                self.client.meta.events.unregister(event, as_frames)

    @property
    def endpoint_url(self) -> str:
        """Where requests go, as boto3 has worked it out."""
        return str(self.client.meta.endpoint_url)

    def close(self) -> None:
        """Close the connection. What was sent stays counted, and what was allowed stays used."""
        self.client.close()

    def _guard(self, event_name: str = "", **_: Any) -> None:
        """Let one request pass, or stop it: what is raised here comes before its first byte."""
        kind = event_name.rpartition(".")[2]
        allowed = self._allowed or Counter()
        if self.requests[kind] >= allowed[kind]:
            raise _second_write()
        self.requests[kind] += 1
        if kind in (COMPLETE, ABORT):
            # What comes after can only be the giving up of an upload that was not completed.
            self._allowed = Counter({ABORT: allowed[ABORT]} if kind == COMPLETE else {})


def errors_of_sending() -> tuple[type[Exception], ...]:
    """Return what `send` raises if the store or the network does not do what was asked."""
    from botocore.exceptions import BotoCoreError, ClientError

    # ValueError: an answer that botocore cannot parse, among others.
    return ClientError, BotoCoreError, SecondWrite, OSError, ValueError


def session_of(place: Place) -> boto3.Session:
    """Return boto3's session. Raises SettingsError if the profile or the CA bundle is not there."""
    import boto3
    from botocore.exceptions import BotoCoreError

    if place.ca_bundle and not os.access(place.ca_bundle, os.R_OK):
        raise SettingsError(
            f"the file {place.ca_bundle} of `ca_bundle` cannot be read",
            remedy="Correct the path, or let the user this runs as read it.",
        )
    try:
        return boto3.Session(profile_name=place.profile, region_name=place.region)
    except BotoCoreError as error:
        raise SettingsError(f"boto3: {error}", remedy="Correct `profile`, or ~/.aws/config.") from None


def secrets_of(session: boto3.Session) -> tuple[str, ...]:
    """Return what must never be shown. Raises SettingsError if there are no credentials."""
    from botocore.exceptions import BotoCoreError

    try:
        found = session.get_credentials()
        credentials = found.get_frozen_credentials() if found is not None else None
    except BotoCoreError as error:
        what, remedy = answers.trouble(error)
        raise SettingsError(f"credentials for the off-site copy: {what}", remedy=remedy) from None
    if credentials is None or not credentials.access_key or not credentials.secret_key:
        raise SettingsError(
            "no credentials for the off-site copy were found",
            remedy="Give them the boto3 way: a file that AWS_SHARED_CREDENTIALS_FILE names, ~/.aws, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, `profile`, or the role of the instance.",
        )
    return tuple(secret for secret in (credentials.secret_key, credentials.token) if secret)


def client_of(session: boto3.Session, place: Place, *, attempts: int) -> BaseClient:
    """Return a client that sends each request up to so many times. Raises SettingsError."""
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        s3={"addressing_style": place.addressing_style},
        proxies={str(scheme): url for scheme, url in place.proxies.items()} if place.proxies else None,
        connect_timeout=place.connect_timeout_s,
        read_timeout=place.answer_timeout_s,
        signature_version="s3v4",
        # The write brings its own checksum, and ranges have none.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        tcp_keepalive=True,
        max_pool_connections=1,
    )
    try:
        client: BaseClient = session.client(
            "s3", endpoint_url=place.endpoint_url, verify=place.ca_bundle or None, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(f"boto3: {error}", remedy="Correct the settings of the off-site copy.") from None
    return client


def _second_write() -> SecondWrite:
    return SecondWrite(
        "a second write request was stopped before it was sent",
        remedy="There is one call a day. What it did not deliver goes with the next day's.",
    )


def _stay_in_region(params: dict[str, Any], **_: Any) -> None:
    """Let botocore believe that the request was redirected before: it does so only once.

    S3RegionRedirectorv2 would ask the bucket for its region, with a request, and then send again.
    """
    params["context"].setdefault("s3_redirect", {})["redirected"] = True
