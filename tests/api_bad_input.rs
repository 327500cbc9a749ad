//! Requests that are wrong. Each is answered with its exact status and envelope; none of them leaves
//! an event in the log, and no value given as a secret comes back or reaches the server's log.

mod common;

use common::{Api, KEY, OTHER_KEY, Reply, Server};
use serde_json::json;

/// Stands in every field that may hold a secret; must never be seen again.
const CANARY: &str = "canary-7f3a91c2";

/// Method, path, body, status, error. `{p}` and `{s}` are this organization's project and store,
/// `{op}` and `{os}` another's, `{gone}` an id that nobody has, `{box}` a sandbox that nobody has.
type Row = (&'static str, &'static str, &'static str, u16, &'static str);

const PROJECTS: &[Row] = &[
    ("POST", "/api/projects", "", 400, "name is required"),
    ("POST", "/api/projects", "  ", 400, "name is required"),
    ("POST", "/api/projects", "{}", 400, "name is required"),
    (
        "POST",
        "/api/projects",
        r#"{"name":""}"#,
        400,
        "name is required",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":null}"#,
        400,
        "name is required",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"Name":"x"}"#,
        400,
        "name is required",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":7}"#,
        400,
        "invalid request: `name` has the wrong type",
    ),
    ("POST", "/api/projects", "null", 400, NOT_OBJECT),
    ("POST", "/api/projects", "7", 400, NOT_OBJECT),
    ("POST", "/api/projects", r#""name""#, 400, NOT_OBJECT),
    ("POST", "/api/projects", "[]", 400, NOT_OBJECT),
    // A list with a value for each field is no object either.
    (
        "POST",
        "/api/projects",
        r#"["x",null,null,null,null,null]"#,
        400,
        NOT_OBJECT,
    ),
    (
        "POST",
        "/api/projects",
        "{",
        400,
        "invalid request: not valid JSON at line 1 column 1",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x""#,
        400,
        "invalid request: not valid JSON at line 1 column 11",
    ),
    (
        "POST",
        "/api/projects",
        "{'name':'x'}",
        400,
        "invalid request: not valid JSON at line 1 column 2",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"\ud800"}"#,
        400,
        "invalid request: not valid JSON at line 1 column 16",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","cpuCount":1e999}"#,
        400,
        "invalid request: not valid JSON at line 1 column 28",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x"} {}"#,
        400,
        "invalid request: text after the JSON value",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","name":"y"}"#,
        400,
        "invalid request: a field is there twice",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","cpuCount":5}"#,
        400,
        "cpuCount must not exceed 4",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","cpuCount":1.5}"#,
        400,
        "invalid request: `cpuCount` has the wrong type",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","cpuCount":"2"}"#,
        400,
        "invalid request: `cpuCount` has the wrong type",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","cpuCount":true}"#,
        400,
        "invalid request: `cpuCount` has the wrong type",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","cpuCount":99999999999999999999}"#,
        400,
        "invalid request: `cpuCount` has the wrong type",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","cpuCount":9223372036854775807}"#,
        400,
        "cpuCount must not exceed 4",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","memoryMB":16385}"#,
        400,
        "memoryMB must not exceed 16384",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","memoryMB":127}"#,
        400,
        "memoryMB must be at least 128",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","memoryMB":[]}"#,
        400,
        "invalid request: `memoryMB` has the wrong type",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","timeoutSec":-1}"#,
        400,
        "timeoutSec must not be negative",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","timeoutSec":2147483648}"#,
        400,
        "timeoutSec must not exceed 2147483647",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","template":7}"#,
        400,
        "invalid request: `template` has the wrong type",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","template":"a\nb"}"#,
        400,
        "template must be at most 128 printable characters",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"a\u0000b"}"#,
        400,
        "name must not hold control characters",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"a\nb"}"#,
        400,
        "name must not hold control characters",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","egressAllowlist":"a.test"}"#,
        400,
        "invalid request: `egressAllowlist` has the wrong type",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","egressAllowlist":[7]}"#,
        400,
        "invalid request: `egressAllowlist[0]` has the wrong type",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","egressAllowlist":[""]}"#,
        400,
        "egressAllowlist: `` is not a host name, `*.suffix` or `*`",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","egressAllowlist":["a.test","http://b.test"]}"#,
        400,
        "egressAllowlist: `http://b.test` is not a host name, `*.suffix` or `*`",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","egressAllowlist":["a.*.test"]}"#,
        400,
        "egressAllowlist: `a.*.test` is not a host name, `*.suffix` or `*`",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","egressAllowlist":["10.0.0.1"]}"#,
        400,
        "egressAllowlist: `10.0.0.1` is not a host name, `*.suffix` or `*`",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","egressAllowlist":["b\u00fccher.test"]}"#,
        400,
        "egressAllowlist: `b\u{fc}cher.test` is not a host name, `*.suffix` or `*`",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"x","egressAllowlist":["a.test\u0000.evil.test"]}"#,
        400,
        "egressAllowlist: `a.test.evil.test` is not a host name, `*.suffix` or `*`",
    ),
    (
        "POST",
        "/api/projects",
        r#"{"name":"taken"}"#,
        409,
        "project name already exists",
    ),
    ("GET", "/api/projects/x", "", 400, "invalid project ID"),
    ("GET", "/api/projects/%00", "", 400, "invalid project ID"),
    ("GET", "/api/projects/%FF%FE", "", 400, "invalid project ID"),
    (
        "GET",
        "/api/projects/sb-01m806v6r12w1bmtyq39z8xdwq",
        "",
        400,
        "invalid project ID",
    ),
    ("GET", "/api/projects/{gone}", "", 404, "project not found"),
    ("GET", "/api/projects/{s}", "", 404, "project not found"),
    ("GET", "/api/projects/{op}", "", 404, "project not found"),
    (
        "PUT",
        "/api/projects/{op}",
        r#"{"cpuCount":2}"#,
        404,
        "project not found",
    ),
    (
        "PUT",
        "/api/projects/{op}",
        r#"{"cpuCount":9}"#,
        404,
        "project not found",
    ),
    ("DELETE", "/api/projects/{op}", "", 404, "project not found"),
    (
        "DELETE",
        "/api/projects/{gone}",
        "",
        404,
        "project not found",
    ),
    (
        "PUT",
        "/api/projects/x",
        r#"{"cpuCount":2}"#,
        400,
        "invalid project ID",
    ),
    (
        "PUT",
        "/api/projects/{gone}",
        "{}",
        404,
        "project not found",
    ),
    (
        "PUT",
        "/api/projects/{p}",
        r#"{"name":"taken"}"#,
        409,
        "project name already exists",
    ),
    (
        "PUT",
        "/api/projects/{p}",
        r#"{"cpuCount":-1}"#,
        400,
        "cpuCount must not be negative",
    ),
    (
        "PUT",
        "/api/projects/{p}",
        r#"{"memoryMB":-1}"#,
        400,
        "memoryMB must not be negative",
    ),
    (
        "PUT",
        "/api/projects/{p}",
        r#"{"timeoutSec":-300}"#,
        400,
        "timeoutSec must not be negative",
    ),
    (
        "PUT",
        "/api/projects/{p}",
        r#"{"memoryMB":100000}"#,
        400,
        "memoryMB must not exceed 16384",
    ),
    (
        "PUT",
        "/api/projects/{p}",
        r#"{"egressAllowlist":{}}"#,
        400,
        "invalid request: `egressAllowlist` has the wrong type",
    ),
    (
        "PUT",
        "/api/projects/{p}",
        r#"{"name":["x"]}"#,
        400,
        "invalid request: `name` has the wrong type",
    ),
];

const SECRETS: &[Row] = &[
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        "",
        400,
        "secret value is required",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":""}"#,
        400,
        "secret value is required",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":null}"#,
        400,
        "secret value is required",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":7}"#,
        400,
        "invalid request: `value` has the wrong type",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":["canary-7f3a91c2"]}"#,
        400,
        "invalid request: `value` has the wrong type",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":{"of":"canary-7f3a91c2"}}"#,
        400,
        "invalid request: `value` has the wrong type",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#""canary-7f3a91c2""#,
        400,
        NOT_OBJECT,
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        "canary-7f3a91c2",
        400,
        "invalid request: not valid JSON at line 1 column 1",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"["canary-7f3a91c2",null]"#,
        400,
        NOT_OBJECT,
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":"canary-7f3a91c2"#,
        400,
        "invalid request: not valid JSON at line 1 column 25",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":"canary-7f3a91c2"}x"#,
        400,
        "invalid request: text after the JSON value",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":"canary-7f3a91c2","allowedHosts":"a.test"}"#,
        400,
        "invalid request: `allowedHosts` has the wrong type",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":"canary-7f3a91c2","allowedHosts":["a b"]}"#,
        400,
        "allowedHosts: `a b` is not a host name, `*.suffix` or `*`",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/T",
        r#"{"value":"canary-7f3a91c2","allowedHosts":[""]}"#,
        400,
        "allowedHosts: `` is not a host name, `*.suffix` or `*`",
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/1T",
        r#"{"value":"canary-7f3a91c2"}"#,
        400,
        BAD_SECRET_NAME,
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/A-B",
        r#"{"value":"canary-7f3a91c2"}"#,
        400,
        BAD_SECRET_NAME,
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/A%20B",
        r#"{"value":"canary-7f3a91c2"}"#,
        400,
        BAD_SECRET_NAME,
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/A%00",
        r#"{"value":"canary-7f3a91c2"}"#,
        400,
        BAD_SECRET_NAME,
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/A%2FB",
        r#"{"value":"canary-7f3a91c2"}"#,
        400,
        BAD_SECRET_NAME,
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/%FF",
        r#"{"value":"canary-7f3a91c2"}"#,
        400,
        BAD_SECRET_NAME,
    ),
    (
        "PUT",
        "/api/projects/{p}/secrets/%C3%84",
        r#"{"value":"canary-7f3a91c2"}"#,
        400,
        BAD_SECRET_NAME,
    ),
    (
        "PUT",
        "/api/projects/{op}/secrets/T",
        r#"{"value":"canary-7f3a91c2"}"#,
        404,
        "project not found",
    ),
    (
        "PUT",
        "/api/projects/{gone}/secrets/T",
        r#"{"value":"canary-7f3a91c2"}"#,
        404,
        "project not found",
    ),
    (
        "PUT",
        "/api/projects/x/secrets/T",
        r#"{"value":"canary-7f3a91c2"}"#,
        400,
        "invalid project ID",
    ),
    (
        "GET",
        "/api/projects/{op}/secrets",
        "",
        404,
        "project not found",
    ),
    (
        "GET",
        "/api/projects/x/secrets",
        "",
        400,
        "invalid project ID",
    ),
    (
        "DELETE",
        "/api/projects/{p}/secrets/T",
        "",
        404,
        "secret not found",
    ),
    (
        "DELETE",
        "/api/projects/{op}/secrets/HELD",
        "",
        404,
        "project not found",
    ),
    ("POST", "/api/secret-stores", "", 400, "name is required"),
    (
        "POST",
        "/api/secret-stores",
        r#"{"name":""}"#,
        400,
        "name is required",
    ),
    (
        "POST",
        "/api/secret-stores",
        r#"{"name":{}}"#,
        400,
        "invalid request: `name` has the wrong type",
    ),
    (
        "POST",
        "/api/secret-stores",
        r#"{"name":"a\u0007b"}"#,
        400,
        "name must not hold control characters",
    ),
    (
        "POST",
        "/api/secret-stores",
        r#"{"name":"taken"}"#,
        409,
        "secret store name already exists",
    ),
    (
        "POST",
        "/api/secret-stores",
        r#"{"name":"x","egressAllowlist":["*."]}"#,
        400,
        "egressAllowlist: `*.` is not a host name, `*.suffix` or `*`",
    ),
    (
        "POST",
        "/api/secret-stores",
        r#"{"name":"x","egressAllowlist":[null]}"#,
        400,
        "invalid request: `egressAllowlist[0]` has the wrong type",
    ),
    ("GET", "/api/secret-stores/x", "", 400, "invalid store ID"),
    (
        "GET",
        "/api/secret-stores/{os}",
        "",
        404,
        "secret store not found",
    ),
    (
        "GET",
        "/api/secret-stores/{p}",
        "",
        404,
        "secret store not found",
    ),
    (
        "PUT",
        "/api/secret-stores/{os}",
        r#"{"name":"mine"}"#,
        404,
        "secret store not found",
    ),
    (
        "PUT",
        "/api/secret-stores/{s}",
        r#"{"name":"taken"}"#,
        409,
        "secret store name already exists",
    ),
    (
        "PUT",
        "/api/secret-stores/{s}",
        r#"{"egressAllowlist":7}"#,
        400,
        "invalid request: `egressAllowlist` has the wrong type",
    ),
    (
        "DELETE",
        "/api/secret-stores/{os}",
        "",
        404,
        "secret store not found",
    ),
    (
        "DELETE",
        "/api/secret-stores/x",
        "",
        400,
        "invalid store ID",
    ),
    (
        "PUT",
        "/api/secret-stores/{s}/secrets/T",
        r#"{"value":""}"#,
        400,
        "secret value is required",
    ),
    (
        "PUT",
        "/api/secret-stores/{s}/secrets/T",
        r#"{"value":"canary-7f3a91c2","allowedHosts":["a.test",""]}"#,
        400,
        "allowedHosts: `` is not a host name, `*.suffix` or `*`",
    ),
    (
        "PUT",
        "/api/secret-stores/{s}/secrets/a.b",
        r#"{"value":"canary-7f3a91c2"}"#,
        400,
        BAD_SECRET_NAME,
    ),
    (
        "PUT",
        "/api/secret-stores/{os}/secrets/T",
        r#"{"value":"canary-7f3a91c2"}"#,
        404,
        "secret store not found",
    ),
    (
        "GET",
        "/api/secret-stores/{os}/secrets",
        "",
        404,
        "secret store not found",
    ),
    (
        "DELETE",
        "/api/secret-stores/{s}/secrets/T",
        "",
        404,
        "secret not found",
    ),
    (
        "DELETE",
        "/api/secret-stores/{os}/secrets/HELD",
        "",
        404,
        "secret store not found",
    ),
];

const SANDBOXES: &[Row] = &[
    ("POST", "/api/sandboxes", "[]", 400, NOT_OBJECT),
    (
        "POST",
        "/api/sandboxes",
        "{",
        400,
        "invalid request: not valid JSON at line 1 column 1",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"cpuCount":5}"#,
        400,
        "cpuCount must not exceed 4",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"cpuCount":0.5}"#,
        400,
        "invalid request: `cpuCount` has the wrong type",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"memoryMB":16385}"#,
        400,
        "memoryMB must not exceed 16384",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"memoryMB":1}"#,
        400,
        "memoryMB must be at least 128",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"diskMB":0}"#,
        400,
        "diskMB must be between 20480 and 262144",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"diskMB":20479}"#,
        400,
        "diskMB must be between 20480 and 262144",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"diskMB":262145}"#,
        400,
        "diskMB must be between 20480 and 262144",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"timeout":-1}"#,
        400,
        "timeout must not be negative",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"timeout":2147483648}"#,
        400,
        "timeout must not exceed 2147483647",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"timeout":"300"}"#,
        400,
        "invalid request: `timeout` has the wrong type",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"metadata":{"a":1}}"#,
        400,
        "invalid request: `metadata.a` has the wrong type",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"metadata":[]}"#,
        400,
        "invalid request: `metadata` has the wrong type",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"envs":{"A":["canary-7f3a91c2"]}}"#,
        400,
        "invalid request: `envs.A` has the wrong type",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"envs":["canary-7f3a91c2"]}"#,
        400,
        "invalid request: `envs` has the wrong type",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"envs":{"A=B":"canary-7f3a91c2"}}"#,
        400,
        "envs: names must not be empty or hold `=` or NUL",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"envs":{"":"canary-7f3a91c2"}}"#,
        400,
        "envs: names must not be empty or hold `=` or NUL",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"envs":{"A":"canary-7f3a91c2\u0000"}}"#,
        400,
        "envs: values must not hold NUL",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"port":0}"#,
        400,
        "port must be between 1 and 65535",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"port":65536}"#,
        400,
        "port must be between 1 and 65535",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"networkEnabled":"yes"}"#,
        400,
        "invalid request: `networkEnabled` has the wrong type",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"alias":"a\u0000b"}"#,
        400,
        "alias must be at most 128 printable characters",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"egressAllowlist":["a..test"]}"#,
        400,
        "egressAllowlist: `a..test` is not a host name, `*.suffix` or `*`",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"templateID":"nope"}"#,
        404,
        "template not found: nope",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"templateID":7}"#,
        400,
        "invalid request: `templateID` has the wrong type",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"project":"nope"}"#,
        400,
        "project not found: nope",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"project":"theirs"}"#,
        400,
        "project not found: theirs",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"project":"a\u001b[2Jb"}"#,
        400,
        "project not found: a[2Jb",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"secretStore":"nope"}"#,
        400,
        "secret store not found: nope",
    ),
    (
        "POST",
        "/api/sandboxes",
        r#"{"secretStore":"theirs"}"#,
        400,
        "secret store not found: theirs",
    ),
    ("GET", "/api/sandboxes/x", "", 404, "sandbox not found"),
    ("GET", "/api/sandboxes/{box}", "", 404, "sandbox not found"),
    ("GET", "/sandboxes/{box}", "", 404, "sandbox not found"),
    (
        "DELETE",
        "/api/sandboxes/{box}",
        "",
        404,
        "sandbox not found",
    ),
    (
        "DELETE",
        "/api/sandboxes/..%2F..%2Fetc",
        "",
        404,
        "sandbox not found",
    ),
    (
        "POST",
        "/api/sandboxes/{box}/timeout",
        r#"{"timeout":60}"#,
        404,
        "sandbox not found",
    ),
    (
        "POST",
        "/api/sandboxes/{box}/exec/run",
        r#"{"cmd":"true"}"#,
        404,
        "sandbox not found",
    ),
    (
        "POST",
        "/api/sandboxes/{box}/exec/run-async",
        r#"{"cmd":"true"}"#,
        404,
        "sandbox not found",
    ),
    (
        "POST",
        "/sandboxes/{box}/commands",
        r#"{"cmd":"true"}"#,
        404,
        "sandbox not found",
    ),
    (
        "GET",
        "/api/sandboxes/{box}/exec/00000000/result",
        "",
        404,
        "sandbox not found",
    ),
    (
        "GET",
        "/api/sandboxes/{box}/exec/00000000",
        "",
        404,
        "sandbox not found",
    ),
    (
        "POST",
        "/api/sandboxes/{box}/pty",
        r#"{"cols":80,"rows":24}"#,
        404,
        "sandbox not found",
    ),
    (
        "POST",
        "/sandboxes/{box}/pty",
        r#"{"cols":"80"}"#,
        400,
        "invalid request: `cols` has the wrong type",
    ),
    (
        "GET",
        "/api/sandboxes/{box}/pty/00000000",
        "",
        404,
        "sandbox not found",
    ),
    (
        "POST",
        "/api/sandboxes/{box}/pty/00000000/resize",
        r#"{"cols":0,"rows":24}"#,
        400,
        "cols and rows must be between 1 and 65535",
    ),
    (
        "POST",
        "/api/sandboxes/{box}/pty/00000000/resize",
        r#"{"cols":80}"#,
        400,
        "cols and rows are required",
    ),
    (
        "DELETE",
        "/api/sandboxes/{box}/pty/00000000",
        "",
        404,
        "sandbox not found",
    ),
    (
        "GET",
        "/api/sandboxes/{box}/files?path=/etc/passwd",
        "",
        404,
        "sandbox not found",
    ),
    (
        "PUT",
        "/api/sandboxes/{box}/files?path=/tmp/x",
        "canary-7f3a91c2",
        404,
        "sandbox not found",
    ),
    (
        "GET",
        "/api/sandboxes/{box}/allowed-hosts",
        "",
        404,
        "sandbox not found",
    ),
    (
        "POST",
        "/api/sandboxes/{box}/token/refresh",
        "",
        404,
        "sandbox not found",
    ),
    (
        "GET",
        "/api/sandboxes?limit=0",
        "",
        400,
        "limit must be between 1 and 200",
    ),
    (
        "GET",
        "/api/sandboxes?limit=201",
        "",
        400,
        "limit must be between 1 and 200",
    ),
    (
        "GET",
        "/api/sandboxes?limit=-1",
        "",
        400,
        "limit must be between 1 and 200",
    ),
    (
        "GET",
        "/api/sandboxes?limit=1.5",
        "",
        400,
        "limit must be between 1 and 200",
    ),
    (
        "GET",
        "/api/sandboxes?offset=-1",
        "",
        400,
        "offset must be a whole number",
    ),
    (
        "GET",
        "/api/sandboxes?status=weird",
        "",
        400,
        "status must be of running, hibernated, stopped, error, all",
    ),
    (
        "GET",
        "/api/sandboxes?status=running,",
        "",
        400,
        "status must be of running, hibernated, stopped, error, all",
    ),
];

const ELSEWHERE: &[Row] = &[
    (
        "GET",
        "/api/audit/events?limit=0",
        "",
        400,
        "limit must be between 1 and 500",
    ),
    (
        "GET",
        "/api/audit/events?limit=501",
        "",
        400,
        "limit must be between 1 and 500",
    ),
    (
        "GET",
        "/api/audit/events?limit=many",
        "",
        400,
        "invalid query parameter",
    ),
    (
        "GET",
        "/api/audit/events?before=-1",
        "",
        400,
        "invalid query parameter",
    ),
    (
        "GET",
        "/api/audit/events?limit=1&limit=2",
        "",
        400,
        "invalid query parameter",
    ),
    (
        "GET",
        "/api/audit/events?entitty=x",
        "",
        400,
        "invalid query parameter",
    ),
    (
        "GET",
        "/api/audit/events?after=-1",
        "",
        400,
        "invalid query parameter",
    ),
    (
        "GET",
        "/api/audit/events?follow=perhaps",
        "",
        400,
        "invalid query parameter",
    ),
    (
        "GET",
        "/api/audit/events?before=1&after=1",
        "",
        400,
        "before and after can't be given together",
    ),
    (
        "GET",
        "/api/audit/events?entity=",
        "",
        400,
        "entity must be a stream or the id of an object",
    ),
    (
        "GET",
        "/api/audit/events?type=A%20B",
        "",
        400,
        "type must be an event type, with or without its version",
    ),
    (
        "GET",
        "/api/audit/events?actor=a/b",
        "",
        400,
        "actor must be the id of an API key or a kind of actor",
    ),
    (
        "GET",
        "/api/audit/events?from=yesterday",
        "",
        400,
        "from must be an RFC 3339 time",
    ),
    (
        "GET",
        "/api/audit/events?to=12",
        "",
        400,
        "to must be an RFC 3339 time",
    ),
    (
        "GET",
        "/api/audit/events?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
        "",
        400,
        "from must not be after to",
    ),
    (
        "GET",
        "/api/audit/events?follow=true&limit=5",
        "",
        400,
        "limit, before and to can't be given with follow",
    ),
    (
        "GET",
        "/api/audit/events?follow=true&before=5",
        "",
        400,
        "limit, before and to can't be given with follow",
    ),
    ("GET", "/api/audit/events/0", "", 404, "event not found"),
    (
        "GET",
        "/api/audit/events/99999999999999999999",
        "",
        400,
        "an event is named by its position or its id",
    ),
    (
        "GET",
        "/api/audit/events/x",
        "",
        400,
        "an event is named by its position or its id",
    ),
    (
        "GET",
        "/api/audit/events/7zzzzzzzzzzzzzzzzzzzzzzzzz",
        "",
        404,
        "event not found",
    ),
    (
        "GET",
        "/api/audit/state",
        "",
        400,
        "at is required: a position or an RFC 3339 time",
    ),
    (
        "GET",
        "/api/audit/state?at=",
        "",
        400,
        "at must be a position or an RFC 3339 time",
    ),
    (
        "GET",
        "/api/audit/state?at=-1",
        "",
        400,
        "at must be a position or an RFC 3339 time",
    ),
    (
        "GET",
        "/api/audit/state?at=99999999999999999999",
        "",
        400,
        "at must be a position or an RFC 3339 time",
    ),
    (
        "GET",
        "/api/audit/state?at=1&at=2",
        "",
        400,
        "invalid query parameter",
    ),
    (
        "GET",
        "/api/audit/state?at=1&when=2",
        "",
        400,
        "invalid query parameter",
    ),
    (
        "GET",
        "/api/audit/state?at=1&entity=a%20b",
        "",
        400,
        "entity must be a stream or the id of an object",
    ),
    (
        "GET",
        "/api/audit/state?at=1&entity=project-nope",
        "",
        404,
        "entity not found",
    ),
    ("PATCH", "/api/projects", "{}", 405, "method not allowed"),
    ("DELETE", "/api/projects", "", 405, "method not allowed"),
    ("POST", "/api/projects/{p}", "{}", 405, "method not allowed"),
    (
        "POST",
        "/api/projects/{p}/secrets",
        "{}",
        405,
        "method not allowed",
    ),
    (
        "GET",
        "/api/projects/{p}/secrets/HELD",
        "",
        405,
        "method not allowed",
    ),
    ("PUT", "/api/secret-stores", "{}", 405, "method not allowed"),
    (
        "PATCH",
        "/api/secret-stores/{s}",
        "{}",
        405,
        "method not allowed",
    ),
    (
        "GET",
        "/api/secret-stores/{s}/secrets/HELD",
        "",
        405,
        "method not allowed",
    ),
    ("PUT", "/api/sandboxes", "{}", 405, "method not allowed"),
    ("POST", "/api/whoami", "{}", 405, "method not allowed"),
    ("GET", "/api/audit/verify", "", 405, "method not allowed"),
    ("POST", "/api/audit/export", "", 405, "method not allowed"),
    (
        "POST",
        "/api/audit/verify",
        r#"{"stream":"no stream"}"#,
        400,
        "not a stream name: 1 to 200 of A-Z a-z 0-9 . _ : - are allowed",
    ),
    (
        "POST",
        "/api/audit/verify",
        r#"{"stream":"project-unknown"}"#,
        404,
        "stream not found",
    ),
    (
        "POST",
        "/api/audit/verify",
        r#"{"known":[{"commit":1,"chain":"ab"}]}"#,
        400,
        "`1:ab` is not COMMIT:CHAIN, a number and 64 hex digits",
    ),
    ("POST", "/health", "", 405, "method not allowed"),
    ("BREW", "/api/projects", "", 405, "method not allowed"),
    ("GET", "/api", "", 404, "no such route"),
    ("GET", "/api/nope", "", 404, "no such route"),
    ("GET", "/nope", "", 404, "no such route"),
    ("GET", "/projects", "", 404, "no such route"),
    ("GET", "/api/projects/", "", 404, "no such route"),
    ("GET", "/api/projects/{p}/nope", "", 404, "no such route"),
    (
        "GET",
        "/api/projects/{p}/secrets/A/B",
        "",
        404,
        "no such route",
    ),
];

const NOT_OBJECT: &str = "invalid request: not the expected JSON object";
const BAD_SECRET_NAME: &str =
    "secret name must match [A-Za-z_][A-Za-z0-9_]* and have at most 256 characters";

/// Collects what differs, so that one run shows every row that is wrong.
struct Table {
    api: Api,
    fills: Vec<(&'static str, String)>,
    tried: usize,
    wrong: Vec<String>,
    seen: Vec<String>,
}

impl Table {
    async fn rows(&mut self, rows: &[Row]) {
        for (method, path, body, status, error) in rows {
            self.row(method, path, body.as_bytes().to_vec(), *status, error)
                .await;
        }
    }

    async fn row(&mut self, method: &str, path: &str, body: Vec<u8>, status: u16, error: &str) {
        let filled = self
            .fills
            .iter()
            .fold(path.to_owned(), |path, (at, id)| path.replace(at, id));
        let body = (!body.is_empty()).then_some(body);
        let shown = body
            .as_deref()
            .map(String::from_utf8_lossy)
            .unwrap_or_default();
        let shown: String = shown.chars().take(100).collect();
        let reply = self.api.call(method, &filled, body).await;
        self.check(format!("{method} {path} {shown}"), &reply, status, error);
    }

    fn check(&mut self, what: String, reply: &Reply, status: u16, error: &str) {
        self.tried += 1;
        let expected = json!({ "error": error }).to_string();
        let is_json = reply.header("content-type").starts_with("application/json");
        if reply.status != status || reply.text != expected || !is_json {
            let found = format!("{} {}", reply.status, reply.text);
            self.wrong.push(format!(
                "{what}\n  wanted {status} {expected}\n  found  {found}"
            ));
        }
        self.seen.push(reply.text.clone());
    }
}

/// Goal: every wrong request is refused as the contract says, changes nothing and repeats no value.
#[actix_rt::test]
async fn wrong_requests_are_refused_exactly_and_change_nothing() {
    let server = Server::start_with_two_orgs();
    let (api, other) = (server.api(), server.other());
    let held = json!({ "value": "held" });
    let fills = vec![
        ("{p}", api.project(&json!({ "name": "mine" })).await),
        ("{s}", api.store(&json!({ "name": "mine" })).await),
        ("{op}", other.project(&json!({ "name": "theirs" })).await),
        ("{os}", other.store(&json!({ "name": "theirs" })).await),
        ("{gone}", "00000000-0000-7000-8000-000000000000".to_owned()),
        ("{box}", "sb-01m806v6r12w1bmtyq39z8xdwq".to_owned()),
    ];
    api.project(&json!({ "name": "taken" })).await;
    api.store(&json!({ "name": "taken" })).await;
    let (op, os) = (&fills[2].1, &fills[3].1);
    other
        .put(&format!("/api/projects/{op}/secrets/HELD"), &held)
        .await
        .ok(200);
    other
        .put(&format!("/api/secret-stores/{os}/secrets/HELD"), &held)
        .await
        .ok(200);
    let before = api.verified_positions().await;

    let mut table = Table {
        api: api.clone(),
        fills,
        tried: 0,
        wrong: Vec::new(),
        seen: Vec::new(),
    };
    for rows in [PROJECTS, SECRETS, SANDBOXES, ELSEWHERE] {
        table.rows(rows).await;
    }
    sizes(&mut table).await;
    credentials(&mut table, &server).await;

    println!("{} wrong requests", table.tried);
    assert!(table.tried >= 60);
    assert!(
        table.wrong.is_empty(),
        "{} differ:\n{}",
        table.wrong.len(),
        table.wrong.join("\n")
    );
    assert!(
        !table.seen.iter().any(|text| text.contains(CANARY)),
        "a reply repeats a value"
    );
    assert!(
        !server.log().contains(CANARY),
        "the server's log has a value"
    );
    assert_eq!(
        api.verified_positions().await,
        before,
        "a refused request left an event"
    );
    let listed = api.get("/api/projects").await.ok(200).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
}

/// What a constant can't spell: over-long texts, many entries, and bytes that are not UTF-8.
async fn sizes(table: &mut Table) {
    let post = |field: serde_json::Value| field.to_string().into_bytes();
    let long_name = "n".repeat(129);
    for path in ["/api/projects", "/api/secret-stores"] {
        let body = post(json!({ "name": long_name }));
        table
            .row("POST", path, body, 400, "name must be at most 128 bytes")
            .await;
        // Counted in bytes: 65 characters of two bytes each.
        let body = post(json!({ "name": "\u{e4}".repeat(65) }));
        table
            .row("POST", path, body, 400, "name must be at most 128 bytes")
            .await;
        let body = post(json!({ "name": "x", "egressAllowlist": vec!["a.test"; 257] }));
        table
            .row(
                "POST",
                path,
                body,
                400,
                "egressAllowlist must have at most 256 entries",
            )
            .await;
        let body = b"{\"name\":\"\xff\xfe\"}".to_vec();
        let error = "invalid request: not valid JSON at line 1 column 10";
        table.row("POST", path, body, 400, error).await;
        let error = "the request body must not exceed 1048576 bytes";
        table
            .row("POST", path, vec![b' '; 1024 * 1024 + 1], 413, error)
            .await;
        let nested = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        let body = [br#"{"x":"#.to_vec(), nested, b"}".to_vec()].concat();
        table.row("POST", path, body, 400, "name is required").await;
    }
    for path in [
        "/api/projects/{p}/secrets/",
        "/api/secret-stores/{s}/secrets/",
    ] {
        let long = format!("{CANARY}{}", "v".repeat(64 * 1024));
        let error = "secret value must not exceed 65536 bytes";
        table
            .row(
                "PUT",
                &format!("{path}T"),
                post(json!({ "value": long })),
                400,
                error,
            )
            .await;
        let name = format!("{path}{}", "N".repeat(257));
        table
            .row(
                "PUT",
                &name,
                post(json!({ "value": CANARY })),
                400,
                BAD_SECRET_NAME,
            )
            .await;
        let body = post(json!({ "value": CANARY, "allowedHosts": vec!["a.test"; 257] }));
        let error = "allowedHosts must have at most 256 entries";
        table
            .row("PUT", &format!("{path}T"), body, 400, error)
            .await;
    }
    let error = "envs must not exceed 1024 variables or 262144 bytes";
    let envs = json!({ "envs": { "A": format!("{CANARY}{}", "v".repeat(256 * 1024)) } });
    table
        .row("POST", "/api/sandboxes", post(envs), 400, error)
        .await;
    let names = (0..1025).map(|n| (format!("V{n}"), CANARY));
    let envs = json!({ "envs": names.collect::<std::collections::BTreeMap<_, _>>() });
    table
        .row("POST", "/api/sandboxes", post(envs), 400, error)
        .await;
    let metadata = json!({ "metadata": { "k": "v".repeat(64 * 1024) } });
    let error = "metadata must not exceed 65536 bytes";
    table
        .row("POST", "/api/sandboxes", post(metadata), 400, error)
        .await;
    let alias = json!({ "alias": "a".repeat(129) });
    let error = "alias must be at most 128 printable characters";
    table
        .row("POST", "/api/sandboxes", post(alias), 400, error)
        .await;
}

/// Wrong credentials, in every slot. The first slot that is present decides.
async fn credentials(table: &mut Table, server: &Server) {
    let none = server.api().without_key();
    let bad = "invalid API key";
    let short = &KEY[..KEY.len() - 1];
    let upper = KEY.to_uppercase();
    let cases = [
        ("no key", none.clone(), "/api/projects", "missing API key"),
        (
            "empty key",
            none.with_key(""),
            "/api/projects",
            "missing API key",
        ),
        (
            "empty query",
            none.clone(),
            "/api/projects?api_key=",
            "missing API key",
        ),
        ("a short key", none.with_key(short), "/api/projects", bad),
        ("upper case", none.with_key(&upper), "/api/projects", bad),
        (
            "a blank around it",
            none.with_key(&format!("{KEY}a")),
            "/api/projects",
            bad,
        ),
        (
            "a made-up token",
            none.with_key("a.b.c"),
            "/api/projects",
            bad,
        ),
        (
            "a bad query key",
            none.clone(),
            "/api/projects?api_key=osb_0",
            bad,
        ),
        (
            "a bad bearer",
            none.with_header("authorization", "Bearer osb_0"),
            "/api/projects",
            bad,
        ),
        (
            "the bearer decides",
            none.with_header("authorization", "Bearer a.b.c")
                .with_key(KEY),
            "/api/projects",
            bad,
        ),
        (
            "an unsigned token",
            none.with_header(
                "authorization",
                "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.",
            ),
            "/api/projects",
            bad,
        ),
        (
            "the header before the query",
            none.with_key("osb_0"),
            KEY_IN_QUERY,
            bad,
        ),
    ];
    for (what, api, path, error) in cases {
        let reply = api.get(path).await;
        table.check(what.to_owned(), &reply, 401, error);
    }
    // Who has no credential learns nothing about ids and bodies.
    for path in [
        "/api/projects/x",
        "/api/sandboxes/x",
        "/api/sandboxes?limit=0",
    ] {
        let reply = none.get(path).await;
        table.check(
            format!("{path} without a key"),
            &reply,
            401,
            "missing API key",
        );
    }
    let reply = none
        .call("POST", "/api/projects", Some(b"{".to_vec()))
        .await;
    table.check(
        "a bad body without a key".to_owned(),
        &reply,
        401,
        "missing API key",
    );
    let reply = server.api().with_key(OTHER_KEY).get("/api/projects").await;
    assert_eq!(reply.ok(200).json().as_array().map(Vec::len), Some(1));
}

const KEY_IN_QUERY: &str =
    "/api/projects?api_key=osb_00000000000000000000000000000000000000000000000000000000000000aa";
