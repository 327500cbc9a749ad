"""Images and webhooks are built and checked as the contract says, without a server."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest

import opencomputer as oc


def test_an_image_is_a_list_of_steps_that_nothing_changes_afterwards(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two").write_bytes(b"\0\xff")
    (tmp_path / "a").write_text("größe", "utf-8")
    base = oc.Image.base()
    image = (
        base.apt_install(["curl"])
        .pip_install(["requests"])
        .run_commands("one", "two")
        .env({"A": "1"})
        .workdir("/w")
        .add_file("/f", "größe")
        .add_local_file(str(tmp_path / "b" / "two"), "/g")
        .add_local_dir(str(tmp_path), "/d")
    )
    text = base64.b64encode("größe".encode()).decode()
    assert base.to_dict() == {"base": "base", "steps": []}
    assert image.to_dict()["steps"] == [
        {"type": "apt_install", "args": {"packages": ["curl"]}},
        {"type": "pip_install", "args": {"packages": ["requests"]}},
        {"type": "run", "args": {"commands": ["one", "two"]}},
        {"type": "env", "args": {"vars": {"A": "1"}}},
        {"type": "workdir", "args": {"path": "/w"}},
        {"type": "add_file", "args": {"path": "/f", "content": text, "encoding": "base64"}},
        {"type": "add_file", "args": {"path": "/g", "content": "AP8=", "encoding": "base64"}},
        {
            "type": "add_dir",
            "args": {
                "path": "/d",
                "files": [
                    {"relativePath": "a", "content": text},
                    {"relativePath": "b/two", "content": "AP8="},
                ],
            },
        },
    ]
    image.to_dict()["steps"].clear()
    assert len(image.to_dict()["steps"]) == 8
    assert image.builder_memory(8192).to_dict()["builderMemoryMB"] == 8192


def test_a_cache_key_depends_on_the_steps_and_on_nothing_else() -> None:
    image = oc.Image.base().env({"NAME": "größe"})
    text = '{"base":"base","steps":[{"args":{"vars":{"NAME":"gr\\u00f6\\u00dfe"}},"type":"env"}]}'
    assert image.cache_key() == hashlib.sha256(text.encode()).hexdigest()
    assert image.builder_memory(1).cache_key() == image.cache_key()
    assert image.workdir("/").cache_key() != image.cache_key()


def test_a_webhook_is_what_it_says_it_is_or_an_error() -> None:
    key = b"0123456789abcdef"
    secret = "whsec_" + base64.b64encode(key).decode()
    body = '{"type":"sandbox.ready","eventId":"e","event":{"data":{}}}'
    now, at = 1_700_000_000, "1699999990"

    def sign(key: bytes, id: str) -> str:
        digest = hmac.new(key, f"{id}.{at}.{body}".encode(), hashlib.sha256).digest()
        return "v1," + base64.b64encode(digest).decode()

    headers = {"svix-id": "m1", "svix-timestamp": at, "svix-signature": f"v1,old {sign(key, 'm1')}"}
    got = oc.verify_webhook(body, headers, secret, now=now)
    assert (got["type"], got["deliveryId"], got["dedupeId"]) == ("sandbox.ready", "m1", "m1")
    # The other spelling of the headers; a secret that is no base64.
    other = {"Webhook-Id": "m", "Webhook-Timestamp": at}
    other["Webhook-Signature"] = sign(b"testsecret!", "m")
    oc.verify_webhook(body.encode(), other, "testsecret!", now=now)
    bad: list[tuple[str, dict[str, str], str, float]] = [
        (body + " ", headers, secret, now),
        (body, headers, secret + "x", now),
        (body, headers | {"svix-id": "m2"}, secret, now),
        (body, headers | {"svix-signature": ""}, secret, now),
        (body, headers, secret, now + 400),
        (body, headers | {"svix-timestamp": "soon"}, secret, now),
        (body, headers | {"svix-signature": "größe"}, secret, now),
    ]
    for text, sent, used, when in bad:
        with pytest.raises(oc.WebhookVerificationError):
            oc.verify_webhook(text, sent, used, now=when)
