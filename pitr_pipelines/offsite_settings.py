"""The off-site copy's part of pitr.yaml: where it goes, how often it may call, and who can open it.

Settings only: nothing here opens a connection. They hold no secret. Credentials come the boto3 way
(environment, `~/.aws`, `profile`, an instance's role), and a proxy that wants a password comes from
HTTPS_PROXY, never from the settings.
"""

from __future__ import annotations

from datetime import time
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _url_without_secret(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not an address; write it as https://s3.example.com")
    if parts.username or parts.password or parts.query:
        # pydantic shows the value it refuses; the models below hide it, as this one may be a secret.
        raise ValueError("holds a user, a password or a query; credentials come the boto3 way")
    return url


def _general_purpose_bucket(bucket: str) -> str:
    if bucket.endswith("--x-s3"):
        # S3 Express opens a session with a request of its own before the write.
        raise ValueError("is a directory bucket, which takes a second request for each call; use another")
    if bucket.startswith("arn:") or "/" in bucket:
        raise ValueError("is not the name of a bucket")
    return bucket


def _prefix(prefix: str) -> str:
    if prefix.startswith("/"):
        raise ValueError("begins with a slash, which S3 takes for a part of the name; leave it out")
    return prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone; write it as America/New_York or UTC") from None
    return name


def _time_of_day(text: str) -> str:
    try:
        parsed = time.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is not None or len(text) != len("06:00"):
        raise ValueError(f'{text!r} is not a time of day; write it in quotes, as "06:00"')
    return text


Url = Annotated[str, AfterValidator(_url_without_secret)]
TimeOfDay = Annotated[str, AfterValidator(_time_of_day)]
Zone = Annotated[str, AfterValidator(_zone)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ObjectLock(_Model):
    """For how long nobody may delete or replace an object; the bucket must be made with Object Lock."""

    mode: Literal["GOVERNANCE", "COMPLIANCE"] = Field(
        description="COMPLIANCE: nobody at all can delete it before; GOVERNANCE: who has a right of its own "
        "for that"
    )
    days: int = Field(ge=1, le=36500, description="how many days from the upload")


class Place(_Model):
    """One bucket, or a part of one, at S3 or a store that speaks its language."""

    bucket: Annotated[str, AfterValidator(_general_purpose_bucket)] = Field(
        min_length=3, max_length=63, description="the bucket's name; it must exist, none is ever made"
    )
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="",
        max_length=512,
        description="what every name begins with, one for each machine that uses the bucket; a slash is "
        "put at its end",
    )
    region: str | None = Field(default=None, description="the bucket's region; default: what boto3 finds")
    endpoint_url: Url | None = Field(
        default=None, description="the store's address; default: Amazon's for the region"
    )
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="where the bucket stands in an address: in the path or in the host's name"
    )
    ca_bundle: str | None = Field(
        default=None, description="PEM file of those who may vouch for the endpoint; default: boto3's"
    )
    proxies: dict[Literal["http", "https"], Url] | None = Field(
        default=None,
        description="a proxy for `http` or `https`, by the endpoint's scheme; default: HTTP_PROXY "
        "and HTTPS_PROXY",
    )
    storage_class: str | None = Field(default=None, description="such as STANDARD_IA; default: the store's")
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        default=None, description="encryption by the store, besides our own; default: what the bucket does"
    )
    sse_kms_key_id: str | None = Field(
        default=None, description="the store's key, with `sse: aws:kms`; default: the account's"
    )
    tags: dict[str, str] = Field(
        default_factory=dict, max_length=10, description="tags that each object gets"
    )
    object_lock: ObjectLock | None = Field(
        default=None,
        description="for how long nobody may delete or replace an object; the bucket must allow it",
    )
    expected_bucket_owner: str | None = Field(
        default=None, pattern=r"^\d{12}$", description="refuse a bucket of any other AWS account"
    )
    profile: str | None = Field(default=None, description="a profile in ~/.aws; default: boto3's")
    connect_timeout_s: float = Field(
        default=20, gt=0, le=600, description="how long to try to connect, in seconds"
    )
    answer_timeout_s: float = Field(
        default=300,
        gt=0,
        le=3600,
        description="how long the store may be silent, the answer included, in seconds",
    )

    @model_validator(mode="after")
    def _a_key_needs_kms(self) -> Self:
        if self.sse_kms_key_id and (self.sse is None or self.sse == "AES256"):
            raise ValueError("sse_kms_key_id needs sse: aws:kms")
        return self


class ApiCalls(_Model):
    """How often the store may be called for a backup, and what counts as one call.

    Reads for a restore, and looks at what became of a call, are not backup calls.
    """

    per_day: Literal[1] = Field(default=1, description="for all databases together; there is no other number")
    unit: Literal["request", "upload"] = Field(
        default="request",
        description="request: one HTTP request, at most 5 GiB; upload: one upload, in parts if it is larger",
    )
    day_in: Zone = Field(
        default="UTC", description="the zone in which the provider counts days, and of the partitions"
    )

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.day_in)


class OffsiteSettings(_Model):
    """The off-site copy: one object a day, for all databases together."""

    store: Place = Field(description="the bucket that it goes to")
    api_calls: ApiCalls = Field(
        default=ApiCalls(), description="what counts as a call, and when a day begins"
    )
    deadline: TimeOfDay = Field(
        default="12:00",
        description="when the day's call is made with the base backups that are there, if some are late; in "
        "`day_in`",
    )
    recipients: tuple[str, ...] = Field(
        default=(), description="public keys that each can open it: age1… or ssh-ed25519 …, ssh-rsa …"
    )
    unencrypted: bool = Field(
        default=False, description="true, and no `recipients`, to send it without encryption"
    )

    @property
    def deadline_at(self) -> time:
        """The time of day of the deadline, in `day_in`."""
        return time.fromisoformat(self.deadline)

    @model_validator(mode="after")
    def _encryption_is_a_choice(self) -> Self:
        if bool(self.recipients) == self.unencrypted:
            raise ValueError(
                "name the public keys that can open the copy in `recipients` (`pitr offsite keygen` makes "
                "one), or say `unencrypted: true`; not both"
            )
        return self
