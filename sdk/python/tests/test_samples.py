"""The code samples of the documents run as they are written.

Only names of things that the reader has to have (ids, and the upstream's port) are filled in.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

import opencomputer as oc

pytestmark = pytest.mark.anyio
# The samples' own `sk-ant-...` is too easily guessed to be looked for in answers.
REAL = "sk-ant-of-the-samples-0123456789abcdef"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMES = ("my-agent-secrets", "new-name")


def samples() -> list[str]:
    text = Path(os.environ["OC_SAMPLES"], "secret-stores-python.md").read_text("utf-8")
    return BLOCK.findall(text)


async def run(code: str, store: str) -> dict[str, Any]:
    """Runs one sample, which has ``await`` outside of any function; gives its names."""
    upstream = f"https://api.anthropic.com:{os.environ['OC_STANDIN_PORT']}"
    code = code.replace("store-uuid", store).replace("https://api.anthropic.com", upstream)
    names: dict[str, Any] = {"Sandbox": oc.Sandbox, "SecretStore": oc.SecretStore}
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    running = eval(compile(code, "<sample>", "exec", flags=flags), names)
    if running is not None:
        await running
    return names


async def reader() -> str:
    """What the document's reader has: a store with a secret."""
    for one in await oc.SecretStore.list():
        if one["name"] in NAMES:
            await oc.SecretStore.delete(one["id"])
    store = await oc.SecretStore.create("my-agent-secrets")
    await oc.SecretStore.set_secret(store["id"], "ANTHROPIC_API_KEY", REAL)
    return store["id"]


async def test_the_samples_of_secret_stores() -> None:
    create, update, set_secret, use = samples()
    await oc.SecretStore.delete(await reader())
    store = (await run(create, ""))["store"]
    assert store["egressAllowlist"] == ["api.anthropic.com"]
    assert (await run(update, store["id"]))["updated"]["name"] == "new-name"

    store_id = await reader()
    await run(set_secret, store_id)
    (entry,) = await oc.SecretStore.list_secrets(store_id)
    assert entry["allowedHosts"] == ["api.anthropic.com"]

    names = await run(use, await reader())
    token = names["result"].stdout.strip()
    assert re.fullmatch(r"osb_sealed_[0-9a-f]{32}", token)
    echo = names["api_result"].stdout
    # The sample's last word is an address of its own to curl, with an answer of its own.
    assert f'"x-api-key": "{token}"' in echo, "the echo comes back sealed"
    assert REAL not in echo
    async with httpx.AsyncClient() as observer:
        seen = await observer.get(f"{os.environ['OC_OBSERVER_URL']}/seen/")
    assert seen.json()["headers"]["x-api-key"] == REAL
    await names["sandbox"].kill()
    await names["sandbox"].close()
