"""Where the off-site copy goes: the bucket, how it is reached, and how an object is to be kept there.

Settings only: nothing here opens a connection. They hold no secret. Credentials come the boto3 way
(environment, `~/.aws`, `profile`, an instance's role), and a proxy that wants a password comes from
HTTPS_PROXY, never from the settings.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

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


Url = Annotated[str, AfterValidator(_url_without_secret)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ObjectLock(_Model):
    """For how long nobody may delete or replace an object; the bucket must be made with Object Lock."""

    mode: Literal["GOVERNANCE", "COMPLIANCE"]
    days: int = Field(ge=1, le=36500, description="how many days from the upload")


class Place(_Model):
    """One bucket, or a part of one, at S3 or a store that speaks its language."""

    bucket: Annotated[str, AfterValidator(_general_purpose_bucket)] = Field(min_length=3, max_length=63)
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="", max_length=512, description="what every name begins with; a slash is put at its end"
    )
    region: str | None = Field(default=None, description="default: what boto3 finds")
    endpoint_url: Url | None = Field(default=None, description="default: Amazon's for the region")
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    ca_bundle: str | None = Field(
        default=None, description="PEM file of those who may vouch for the endpoint; default: boto3's"
    )
    proxies: dict[Literal["http", "https"], Url] | None = Field(
        default=None, description="by scheme of the endpoint; default: HTTP_PROXY and HTTPS_PROXY"
    )
    storage_class: str | None = Field(default=None, description="such as STANDARD_IA; default: the bucket's")
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    sse_kms_key_id: str | None = None
    tags: dict[str, str] = Field(default_factory=dict, max_length=10)
    object_lock: ObjectLock | None = None
    expected_bucket_owner: str | None = Field(
        default=None, pattern=r"^\d{12}$", description="refuse a bucket of any other AWS account"
    )
    profile: str | None = Field(default=None, description="a profile in ~/.aws; default: boto3's")
    connect_timeout_s: float = Field(default=20, gt=0, le=600)
    answer_timeout_s: float = Field(
        default=300, gt=0, le=3600, description="how long the store may be silent, the answer included"
    )

    @model_validator(mode="after")
    def _a_key_needs_kms(self) -> Self:
        if self.sse_kms_key_id and (self.sse is None or self.sse == "AES256"):
            raise ValueError("sse_kms_key_id needs sse: aws:kms")
        return self
