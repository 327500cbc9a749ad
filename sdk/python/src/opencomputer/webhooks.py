"""Destinations for the events of sandboxes, and the check of what arrives there."""

from __future__ import annotations

import base64
import binascii
import builtins
import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from ._http import Call, Client, given, path
from ._sse import parsed
from .errors import WebhookVerificationError
from .types import WebhookDelivery, WebhookDestination

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._config import ClientOptions

_TOLERANCE_SEC_DEFAULT = 300


class Webhooks:
    """Destinations of the organization."""

    def __init__(self, **options: Unpack[ClientOptions]) -> None:
        self._client = Client(**options)

    async def create(
        self,
        url: str,
        *,
        name: str | None = None,
        secret: str | None = None,
        event_types: builtins.list[str] | None = None,
        sandbox_id: str | None = None,
        enabled: bool | None = None,
        metadata: dict[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> WebhookDestination:
        """``url`` is https. The reply has the signing ``secret``."""
        body = given(
            url=url,
            name=name,
            secret=secret,
            eventTypes=event_types,
            sandboxId=sandbox_id,
            enabled=enabled,
            metadata=metadata,
        )
        call = Call(
            "create webhook",
            "POST",
            "/webhooks",
            json=body,
            repeat="keyed",
            idempotency_key=idempotency_key,
            secrets=(secret,) if secret else (),
        )
        return cast(WebhookDestination, await self._client.json(call))

    async def list(self) -> builtins.list[WebhookDestination]:
        reply = await self._client.json(Call("list webhooks", "GET", "/webhooks"))
        return cast("builtins.list[WebhookDestination]", reply["data"])

    async def get(self, id: str) -> WebhookDestination:
        reply = await self._client.json(Call("get webhook", "GET", path("webhooks", id)))
        return cast(WebhookDestination, reply)

    async def get_secret(self, id: str) -> str:
        """The signing secret."""
        call = Call("get webhook secret", "GET", path("webhooks", id, "secret"))
        return str((await self._client.json(call))["secret"])

    async def update(self, id: str, **changes: Any) -> WebhookDestination:
        """``url``, ``event_types``, ``enabled``, ``name``, ``rotate_secret``."""
        known = {
            "url": "url",
            "event_types": "eventTypes",
            "enabled": "enabled",
            "name": "name",
            "rotate_secret": "rotateSecret",
        }
        unknown = set(changes) - set(known)
        if unknown:
            raise TypeError(f"no such field of a webhook: {', '.join(sorted(unknown))}")
        body = {known[field]: value for field, value in changes.items()}
        call = Call("update webhook", "PATCH", path("webhooks", id), json=body)
        return cast(WebhookDestination, await self._client.json(call))

    async def delete(self, id: str) -> None:
        await self._client.done(Call("delete webhook", "DELETE", path("webhooks", id)))

    async def test(self, id: str) -> dict[str, Any]:
        """Sends an event of a type that the destination takes."""
        call = Call("test webhook", "POST", path("webhooks", id, "test"))
        return dict(await self._client.json(call))

    async def list_deliveries(self, id: str) -> builtins.list[WebhookDelivery]:
        """The last 50."""
        call = Call("list deliveries", "GET", path("webhooks", id, "deliveries"))
        return cast("builtins.list[WebhookDelivery]", (await self._client.json(call))["data"])

    async def get_delivery(self, id: str, delivery_id: str) -> dict[str, Any]:
        """What was sent."""
        call = Call("get delivery", "GET", path("webhooks", id, "deliveries", delivery_id))
        return dict(await self._client.json(call))

    async def redeliver(self, id: str, delivery_id: str) -> None:
        """Sends it again under the same id."""
        at = path("webhooks", id, "deliveries", delivery_id, "redeliver")
        await self._client.done(Call("redeliver", "POST", at))

    async def close(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def verify_webhook(
    raw_body: str | bytes,
    headers: Mapping[str, str],
    secret: str,
    *,
    tolerance: float = _TOLERANCE_SEC_DEFAULT,
    now: float | None = None,
) -> dict[str, Any]:
    """Checks that a delivery is the server's and is fresh; gives its content.

    Hand over the body as it came, not parsed. Raises ``WebhookVerificationError``.
    """
    body = raw_body.encode() if isinstance(raw_body, str) else raw_body
    id, timestamp = _header(headers, "id"), _header(headers, "timestamp")
    age = (
        abs((time.time() if now is None else now) - int(timestamp))
        if timestamp.isdecimal()
        else None
    )
    if age is None or age > tolerance:
        raise WebhookVerificationError("the webhook's timestamp is too old or too new")
    signed = hmac.new(_key(secret), f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(signed)
    given_ones = _header(headers, "signature").encode().split(b" ")
    if not any(hmac.compare_digest(one, expected) for one in given_ones):
        raise WebhookVerificationError("the webhook's signature does not fit")
    content = parsed(body.decode("utf-8", "replace"))
    if not isinstance(content, dict):
        raise WebhookVerificationError("the webhook's body is not a JSON object")
    return {**content, "deliveryId": id, "dedupeId": id}


def _header(headers: Mapping[str, str], name: str) -> str:
    lower = {key.lower(): value for key, value in headers.items()}
    value = lower.get(f"svix-{name}") or lower.get(f"webhook-{name}")
    if not value:
        raise WebhookVerificationError(f"the webhook has no {name}")
    return value


def _key(secret: str) -> bytes:
    """The text after ``whsec_`` in base64, if it is that; else the whole secret's bytes."""
    text = secret.removeprefix("whsec_")
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return secret.encode()
    fits = decoded and base64.b64encode(decoded).decode() == text
    return decoded if fits else secret.encode()
