"""What sandboxes used, and the tags they are grouped by."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from ._http import Call, Client, given, path

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._config import ClientOptions


@dataclass
class UsageTotals:
    memory_gb_seconds: float = 0.0
    disk_overage_gb_seconds: float = 0.0


@dataclass
class UsageSandboxItem:
    sandbox_id: str
    memory_gb_seconds: float
    disk_overage_gb_seconds: float
    tags: dict[str, str] = field(default_factory=dict)
    tags_last_updated_at: str | None = None
    alias: str | None = None
    status: str | None = None


@dataclass
class UsageTagItem:
    tag_key: str
    tag_value: str
    memory_gb_seconds: float
    disk_overage_gb_seconds: float
    sandbox_count: int


@dataclass
class UsageUntaggedBucket:
    memory_gb_seconds: float = 0.0
    disk_overage_gb_seconds: float = 0.0
    sandbox_count: int = 0


@dataclass
class UsageBySandboxResponse:
    from_: str
    to: str
    total: UsageTotals
    items: list[UsageSandboxItem]
    #: For the next page; None on the last one.
    next_cursor: str | None


@dataclass
class UsageByTagResponse:
    from_: str
    to: str
    group_by: str
    total: UsageTotals
    untagged: UsageUntaggedBucket
    items: list[UsageTagItem]
    #: For the next page; None on the last one.
    next_cursor: str | None


@dataclass
class SandboxUsagePoint:
    ts: str
    memory_allocated_gb_seconds: float
    memory_used_gb_seconds: float
    uptime_seconds: float
    allocated_memory_mb: int
    used_memory_mb_avg: float
    used_memory_mb_peak: float


@dataclass
class SandboxUsageTotals:
    memory_allocated_gb_seconds: float = 0.0
    memory_used_gb_seconds: float = 0.0
    uptime_seconds: float = 0.0
    memory_allocated_peak_mb: float = 0.0
    memory_used_peak_mb: float = 0.0


@dataclass
class SandboxUsageResponse:
    sandbox_id: str
    from_: str
    to: str
    totals: SandboxUsageTotals
    points: list[SandboxUsagePoint]
    alias: str | None = None


@dataclass
class TagKeyInfo:
    key: str
    sandbox_count: int
    value_count: int


T = TypeVar("T")


def _camel(name: str) -> str:
    first, *rest = name.rstrip("_").split("_")
    return first + "".join(word.capitalize() for word in rest)


def _build(kind: type[T], data: dict[str, Any]) -> T:
    """Fields of a dataclass from the API's names; what is not there gets its default."""
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: data[_camel(name)] for name in names if _camel(name) in data})


class _OfOrganization:
    def __init__(self, **options: Unpack[ClientOptions]) -> None:
        self._client = Client(**options)

    @classmethod
    def _from_client(cls, client: Client) -> Self:
        """What earlier packages offered: the connection of a sandbox is used again."""
        made = cls.__new__(cls)
        made._client = client
        return made

    async def close(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Usage(_OfOrganization):
    """What was used, by sandbox or by tag."""

    async def by_sandbox(
        self,
        *,
        from_: str | None = None,
        to: str | None = None,
        filter: dict[str, str] | None = None,
        sort: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> UsageBySandboxResponse:
        """``filter``: ``tag:<key>`` to values, separated by commas; ``""``: the tag is absent."""
        body = await self._grouped("sandbox", from_, to, filter, sort, limit, cursor)
        return UsageBySandboxResponse(
            from_=body["from"],
            to=body["to"],
            total=_build(UsageTotals, body["total"]),
            items=[_build(UsageSandboxItem, one) for one in body["items"]],
            next_cursor=body.get("nextCursor"),
        )

    async def by_tag(
        self,
        tag_key: str,
        *,
        from_: str | None = None,
        to: str | None = None,
        filter: dict[str, str] | None = None,
        sort: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> UsageByTagResponse:
        body = await self._grouped(f"tag:{tag_key}", from_, to, filter, sort, limit, cursor)
        return UsageByTagResponse(
            from_=body["from"],
            to=body["to"],
            group_by=body["groupBy"],
            total=_build(UsageTotals, body["total"]),
            untagged=_build(UsageUntaggedBucket, body.get("untagged") or {}),
            items=[_build(UsageTagItem, one) for one in body["items"]],
            next_cursor=body.get("nextCursor"),
        )

    async def for_sandbox(
        self, sandbox_id: str, *, from_: str | None = None, to: str | None = None
    ) -> SandboxUsageResponse:
        query = given(**{"from": from_, "to": to})
        at = path("sandboxes", sandbox_id, "usage")
        body = await self._client.json(Call("get usage", "GET", at, query=query))
        return SandboxUsageResponse(
            sandbox_id=body["sandboxId"],
            from_=body["from"],
            to=body["to"],
            totals=_build(SandboxUsageTotals, body["totals"]),
            points=[_build(SandboxUsagePoint, one) for one in body["points"]],
            alias=body.get("alias"),
        )

    async def _grouped(
        self,
        group_by: str,
        from_: str | None,
        to: str | None,
        filter: dict[str, str] | None,
        sort: str | None,
        limit: int | None,
        cursor: str | None,
    ) -> dict[str, Any]:
        query = given(groupBy=group_by, to=to, sort=sort, limit=limit, cursor=cursor)
        query |= given(**{"from": from_})
        query |= {f"filter[{key}]": value for key, value in (filter or {}).items()}
        reply = await self._client.json(Call("get usage", "GET", "/usage", query=query))
        return dict(reply)


class Tags(_OfOrganization):
    """Tags of sandboxes."""

    async def list_keys(self) -> list[TagKeyInfo]:
        """Every key in use."""
        reply = await self._client.json(Call("list tags", "GET", "/tags"))
        return [_build(TagKeyInfo, one) for one in reply["keys"]]

    async def get(self, sandbox_id: str) -> tuple[dict[str, str], str | None]:
        """The tags, and when they last changed."""
        at = path("sandboxes", sandbox_id, "tags")
        reply = await self._client.json(Call("get tags", "GET", at))
        return reply["tags"], reply["tagsLastUpdatedAt"]

    async def set(self, sandbox_id: str, tags: dict[str, str]) -> tuple[dict[str, str], str | None]:
        """Replaces all; ``{}`` clears them."""
        at = path("sandboxes", sandbox_id, "tags")
        reply = await self._client.json(Call("set tags", "PUT", at, json=tags))
        return reply["tags"], reply["tagsLastUpdatedAt"]
