"""One call does what the contract says about URLs, keys, errors, retries and time.

Against a server of our own that answers as each test tells it.
"""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest
from conftest import Answer, Seen, fake

import opencomputer as oc

pytestmark = pytest.mark.anyio
KEY = "osb_" + "k" * 64
SANDBOX = {"sandboxID": "sb-1", "status": "running", "sandboxDomain": "x.test"}


async def test_the_url_gets_api_once_and_the_key_goes_into_its_header() -> None:
    async with fake(lambda *_: (200, [])) as server:
        for url in (server.url, f"{server.url}/", f"{server.url}/api", f"{server.url}/api//"):
            assert await oc.Project.list(api_url=url, api_key=KEY) == []
        await oc.Project.list(api_url=server.url, api_key="")
    assert [one.url for one in server.seen] == ["/api/projects"] * 5
    assert server.seen[0].headers["x-api-key"] == KEY
    assert "x-api-key" not in server.seen[4].headers


async def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake(lambda *_: (200, [])) as server:
        monkeypatch.setenv("OPENCOMPUTER_API_URL", server.url)
        monkeypatch.setenv("OPENCOMPUTER_API_KEY", "from-the-environment")
        await oc.SecretStore.list()
        await oc.SecretStore.list(api_key=KEY)
    assert [one.headers["x-api-key"] for one in server.seen] == ["from-the-environment", KEY]


async def test_ids_and_names_cannot_reach_another_route() -> None:
    async with fake(lambda *_: (200, [])) as server:
        await oc.Project.list_secrets("../x?y#z", api_url=server.url)
        assert server.seen[0].url == "/api/projects/..%2Fx%3Fy%23z/secrets"
        for bad in ("", ".", ".."):
            with pytest.raises(ValueError, match="not an id"):
                await oc.Project.list_secrets(bad, api_url=server.url)


async def test_an_error_says_what_the_server_said() -> None:
    body = {"error": "limit reached", "active": 50, "limit": 50, "code": "quota"}
    async with fake(lambda *_: (429, body, {"x-request-id": "01REQUEST"})) as server:
        with pytest.raises(oc.RateLimitError) as caught:
            await oc.Sandbox.create(api_url=server.url, api_key=KEY)
    error = caught.value
    assert str(error) == f"Failed to create sandbox: 429 {json.dumps(body)}"
    assert (error.status, error.code, error.request_id) == (429, "quota", "01REQUEST")
    assert (error.reason, error.body["active"]) == ("limit reached", 50)
    # What programs for earlier packages catch and read.
    assert isinstance(error, httpx.HTTPStatusError)
    assert error.response.status_code == 429
    assert error.response.json() == body
    assert error.request.url.path == "/api/sandboxes"


async def test_each_status_has_its_class() -> None:
    classes: list[tuple[int, str | None, type[oc.ApiError]]] = [
        (400, None, oc.BadRequestError),
        (401, None, oc.AuthenticationError),
        (402, None, oc.PlanLimitError),
        (403, None, oc.PermissionDeniedError),
        (403, "scaling_locked", oc.ScalingLockedError),
        (403, "sandbox_family_scale_disabled", oc.SandboxFamilyLimitError),
        (404, None, oc.NotFoundError),
        (409, None, oc.ConflictError),
        (410, None, oc.GoneError),
        (418, None, oc.ApiError),
        (500, None, oc.ServerError),
        (503, None, oc.UnavailableError),
    ]

    def answer(_: Seen, count: int) -> Answer:
        status, code, _kind = classes[count - 1]
        return status, {"error": "no", "code": code}

    async with fake(answer) as server:
        for _, _, kind in classes:
            with pytest.raises(oc.ApiError) as caught:
                await oc.Project.get("p", api_url=server.url, max_retries=0)
            assert type(caught.value) is kind


async def test_no_error_and_no_printed_object_holds_a_key_or_a_secret() -> None:
    value = 'a "real"\nvalue'

    def answer(seen: Seen, _: int) -> Answer:
        if seen.url.endswith("/sandboxes/sb-1"):
            return 200, SANDBOX
        # A proxy that tells everything it was sent.
        echo = f"{seen.body.decode()} {seen.headers['x-api-key']} {value}"
        return 400, {"error": echo}, {"x-echo": KEY}

    async with fake(answer) as server:
        url = server.url
        sandbox = await oc.Sandbox.connect("sb-1", api_url=url, api_key=KEY)
        snapshots = oc.Snapshots(api_url=url, api_key=KEY)
        things: list[object] = [sandbox, vars(sandbox), snapshots, vars(snapshots)]
        things.append(sandbox._client.config)
        calls = [
            oc.Project.set_secret("p", "NAME", value, api_url=url, api_key=KEY),
            oc.SecretStore.set_secret("s", "NAME", value, api_url=url, api_key=KEY),
            oc.Sandbox.create(envs={"A": value}, api_url=url, api_key=KEY),
        ]
        for call in calls:
            with pytest.raises(oc.BadRequestError) as caught:
                await call
            error = caught.value
            things += [error, vars(error), error.response.text, error.request.headers]
            things += [error.response.headers, error.request.content]
            assert "[secret]" in str(error)
        for thing in things:
            shown = f"{thing!r} {thing}"
            assert KEY not in shown
            assert "real" not in shown, shown
        await sandbox.close()
        await snapshots.close()


async def test_no_error_leads_to_a_request_with_credentials() -> None:
    answers: list[Answer] = [None, 60.0, (400, {"error": "no"})]
    async with fake(lambda _, count: answers[count - 1]) as server:
        for _ in answers:
            with pytest.raises(oc.OpenComputerError) as caught:
                await oc.Project.set_secret(
                    "p",
                    "NAME",
                    "a-secret-value",
                    api_url=server.url,
                    api_key=KEY,
                    request_timeout=0.5,
                    max_retries=0,
                )
            error: BaseException | None = caught.value
            while error is not None:
                request = vars(error).get("_request")
                if request is not None:
                    assert "x-api-key" not in request.headers
                    assert b"a-secret-value" not in request.content
                assert KEY not in f"{error!r} {vars(error)!r}"
                error = error.__cause__ or error.__context__


async def test_what_may_be_repeated_is() -> None:
    def answer(seen: Seen, count: int) -> Answer:
        if count % 3 == 1:
            return 503, {"error": "not now"}
        if count % 3 == 2:
            return None
        return (404, {"error": "gone"}) if seen.method == "DELETE" else (200, SANDBOX)

    async with fake(answer) as server:
        await oc.Project.get("p", api_url=server.url)
        await (await oc.Sandbox.create(api_url=server.url)).close()
        # The first try may have arrived: then a repeat finds nothing.
        await oc.Project.delete("p", api_url=server.url)
    assert [one.method for one in server.seen] == ["GET"] * 3 + ["POST"] * 3 + ["DELETE"] * 3
    keys = [one.headers.get("idempotency-key") for one in server.seen]
    assert keys[3] and len(set(keys[3:6])) == 1
    assert keys[0] is None


async def test_what_cannot_be_repeated_is_sent_once() -> None:
    async with fake(lambda seen, _: (200, SANDBOX) if seen.method == "GET" else None) as server:
        sandbox = await oc.Sandbox.connect("sb-1", api_url=server.url)
        with pytest.raises(oc.ApiConnectionError, match=r"^Failed to create checkpoint: "):
            await sandbox.create_checkpoint("once")
        with pytest.raises(httpx.TransportError):
            await sandbox.reboot()
        await sandbox.close()
    assert len(server.seen) == 3


async def test_a_call_that_the_server_has_not_begun_goes_on_until_its_time_is_up() -> None:
    waking = (503, {"error": "sandbox is waking", "waking": True})
    async with fake(lambda _, count: (200, []) if count > 4 else waking) as server:
        assert await oc.Project.list(api_url=server.url, max_retries=1) == []
    assert len(server.seen) == 5


async def test_a_server_that_is_not_there_and_one_that_never_answers() -> None:
    started = time.monotonic()
    async with fake(lambda *_: 60.0) as server:
        with pytest.raises(oc.ApiTimeoutError, match=r"no answer within 0\.3 s") as caught:
            await oc.Project.list(api_url=server.url, request_timeout=0.3)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, httpx.TimeoutException)
    assert time.monotonic() - started < 20
    with pytest.raises(oc.ApiConnectionError):
        await oc.Project.list(api_url=server.url, max_retries=0)


async def test_a_reply_that_stops_in_the_middle_ends_in_time() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\n[")
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    with pytest.raises(oc.ApiTimeoutError):
        await oc.Project.list(api_url=url, request_timeout=0.3)
    listener.close()


async def test_unset_options_stay_out_of_a_create() -> None:
    async with fake(lambda *_: (201, SANDBOX)) as server:
        one = await oc.Sandbox.create(project="my-agent", api_url=server.url)
        two = await oc.Sandbox.create("t", 0, envs={"A": "1"}, memory_mb=512, api_url=server.url)
        assert (one.id, one.domain) == ("sb-1", "sb-1-p80.x.test")
        assert one.commands is one.exec
        await one.close()
        await two.close()
    bodies = [json.loads(seen.body) for seen in server.seen]
    assert bodies == [
        {"project": "my-agent"},
        {"templateID": "t", "timeout": 0, "envs": {"A": "1"}, "memoryMB": 512},
    ]


async def test_a_sandbox_is_killed_at_the_end_of_its_block() -> None:
    reply = {"POST": (201, SANDBOX), "DELETE": (204, b"")}
    async with fake(lambda seen, _: reply[seen.method]) as server:
        with pytest.raises(RuntimeError, match="of the block"):
            async with await oc.Sandbox.create(api_url=server.url):
                raise RuntimeError("of the block")
    assert server.seen[1].method == "DELETE"


async def test_build_logs_come_as_they_are_written_then_the_result() -> None:
    def log(text: str) -> str:
        return f'event: build_log\ndata: {{"step":1,"type":"run","message":"{text}"}}\n\n'

    result = f"event: result\ndata: {json.dumps(SANDBOX)}\n\n"
    streams = [
        f": keepalive\n\n{log('größe')}event: build_log\ndata: plain\n\n{result}",
        log("one") + 'event: error\ndata: {"error":"step 1 failed"}\n\n',
        log("one"),
    ]
    kind = {"content-type": "text/event-stream"}
    async with fake(lambda _, count: (200, streams[count - 1].encode(), kind)) as server:
        lines: list[str] = []
        image = oc.Image.base().run_commands("true")

        async def create() -> oc.Sandbox:
            return await oc.Sandbox.create(
                image=image, on_build_log=lines.append, api_url=server.url
            )

        await (await create()).close()
        assert lines == ["größe", "plain"]
        with pytest.raises(oc.BuildError, match=r"^Build failed: step 1 failed$"):
            await create()
        with pytest.raises(oc.BuildError, match="No result received from build stream"):
            await create()
    assert server.seen[0].headers["accept"] == "text/event-stream"


async def test_a_builds_plain_reply_and_its_refusal_are_taken_too() -> None:
    ready, taken = (201, {"name": "n", "status": "ready"}), (409, {"error": "exists"})
    async with (
        fake(lambda _, count: ready if count == 1 else taken) as server,
        oc.Snapshots(api_url=server.url) as snapshots,
    ):
        made = await snapshots.create("n", oc.Image.base())
        assert made["status"] == "ready"
        with pytest.raises(oc.ConflictError):
            await snapshots.create("n", oc.Image.base())


async def test_usage_is_read_into_its_classes() -> None:
    totals = {"memoryGbSeconds": 1.5, "diskOverageGbSeconds": 0}
    item = {"tagKey": "env", "tagValue": "a", "sandboxCount": 2, **totals}
    body = {"from": "a", "to": "b", "groupBy": "tag:env", "total": totals, "items": [item]}
    async with fake(lambda *_: (200, body)) as server, oc.Usage(api_url=server.url) as usage:
        got = await usage.by_tag("env", from_="a", filter={"tag:team": "x,y"}, limit=5)
    assert got.items[0] == oc.UsageTagItem("env", "a", 1.5, 0, 2)
    assert got.untagged.sandbox_count == 0
    query = dict(httpx.URL(server.seen[0].url).params)
    wanted = {"groupBy": "tag:env", "from": "a", "filter[tag:team]": "x,y", "limit": "5"}
    assert query == wanted
