"""The store's lifecycle rule that matches what is kept here. Nothing is sent: a person sets the rule.

Expiring an envelope from here would be a call, and a machine that can delete its off-site copies loses them
with itself. A rule knows an object's age only, so it keeps every envelope for as long as the oldest that
`keep` wants.
"""

from __future__ import annotations

from typing import Any

from pitr_pipelines.offsite_settings import OffsiteSettings
from pitr_pipelines.settings import KeepSettings

SLACK_DAYS = 8
"""A window begins at a base from before it, which may be some days older where backups failed; and what a
day did not deliver rides in a later envelope."""

_CENTURY = "20"
"""How the names of envelopes begin, after the prefix: with the year. Other objects are left alone."""


def envelope_days(keep: KeepSettings) -> int:
    """Return for how many days an envelope must stay: the longest of what is kept, and some slack."""
    return max(keep.hourly_days, keep.daily, 7 * keep.weekly, 31 * keep.monthly) + SLACK_DAYS


def lifecycle_rules(keep: KeepSettings, offsite: OffsiteSettings) -> dict[str, Any]:
    """Return the configuration as `aws s3api put-bucket-lifecycle-configuration` takes it."""
    prefix = f"{offsite.store.prefix}{_CENTURY}"
    return {
        "Rules": [
            {
                "ID": "pitr envelopes",
                "Status": "Enabled",
                "Filter": {"Prefix": prefix},
                "Expiration": {"Days": envelope_days(keep)},
                "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
            },
            {
                "ID": "pitr delete markers",
                "Status": "Enabled",
                "Filter": {"Prefix": prefix},
                "Expiration": {"ExpiredObjectDeleteMarker": True},
            },
        ]
    }


def lifecycle_notes(keep: KeepSettings, offsite: OffsiteSettings) -> list[str]:
    """Return what a person must know before he sets the rules, in a line each."""
    days, store = envelope_days(keep), offsite.store
    notes = [
        f"Save this as lifecycle.json; then: aws s3api put-bucket-lifecycle-configuration --bucket "
        f"{store.bucket} --lifecycle-configuration file://lifecycle.json"
        + (f" --endpoint-url {store.endpoint_url}" if store.endpoint_url else ""),
        "That call REPLACES every rule the bucket has: add those it has already (get-bucket-lifecycle-"
        "configuration). Use credentials other than this machine's, which should not be allowed to.",
        f"Covered: each day's envelope stays {days} days, the longest of what `keep` asks for and "
        f"{SLACK_DAYS} days for failed days; that is about {days} envelopes.",
        "Not covered: generations. A rule goes by age alone, so it keeps every day's envelope, not one a "
        "week or month; `offsite.store.tags` are the same every day and tell no generations apart.",
        "Not covered: verification. The rule goes on when backups fail; if nothing was uploaded for "
        f"{days} days, the last envelope expires. Watch the `offsite_copy` asset, or add Object Lock.",
        "In a versioned bucket (Object Lock needs one) an envelope is really deleted a day after it expires; "
        "without versions, what is said of those and of delete markers does nothing.",
    ]
    lock = store.object_lock
    if lock is not None and lock.days > days:
        notes.append(
            f"CAREFUL: object_lock keeps each envelope {lock.days} days, longer than the {days} days of the "
            "rule: it is paid for until the lock ends. Shorten one, or lengthen the other."
        )
    elif lock is not None:
        notes.append(f"object_lock ({lock.mode}, {lock.days} days) ends before the rule's {days}: good.")
    if not store.prefix:
        notes.append(
            "`offsite.store.prefix` is empty: the rules hold for everything in the bucket whose name begins "
            f"with {_CENTURY}."
        )
    return notes
