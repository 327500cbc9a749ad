"""Programs inside a sandbox trust its certificate authority without being told.

Each makes the same HTTPS call with the token in a header: the API must see the real value, the
program only its token. Once with the sandbox's own environment, and once with none at all, which
leaves a program that reads neither a proxy variable nor a path of a certificate file.
"""

import json
import os
import subprocess
import traceback
import urllib.parse
import urllib.request

COMMAND_SEC_MAX = 60
VALUE = "sk-trust-fedcba9876543210"
HOST = os.environ["OC_STANDIN_HOSTS"].split(",")[0]
API_URL = f"https://{HOST}:{os.environ['OC_STANDIN_PORT']}"
PYTHON = """import sys
url, token = sys.argv[1:]
headers = {"x-api-key": token}
"""
PROGRAMS = {
    "curl": ["curl", "-sS", "URL", "-H", "x-api-key: TOKEN"],
    "python urllib": [
        "/usr/bin/python3",
        "-c",
        PYTHON
        + "import urllib.request as u\n"
        + "print(u.urlopen(u.Request(url, headers=headers)).read().decode())",
        "URL",
        "TOKEN",
    ],
    "python requests": [
        "/usr/bin/python3",
        "-c",
        PYTHON + "import requests\nprint(requests.get(url, headers=headers).text)",
        "URL",
        "TOKEN",
    ],
    "python httpx": [
        "/usr/bin/python3",
        "-c",
        PYTHON + "import httpx\nprint(httpx.get(url, headers=headers).text)",
        "URL",
        "TOKEN",
    ],
    "node fetch": [
        "node",
        "-e",
        "fetch(process.argv[1], {headers: {'x-api-key': process.argv[2]}})"
        ".then(r => r.text()).then(console.log)",
        "URL",
        "TOKEN",
    ],
    # It wants a repository and gets an API: what counts is that the call arrived.
    "git": ["git", "-c", "http.extraHeader=x-api-key: TOKEN", "ls-remote", "URL"],
}
# Node has a trust store of its own, which only its variable adds to.
NEED_THE_ENVIRONMENT = {"node fetch"}
# Debian has them as packages, and CI installs those.
MAY_BE_MISSING = {"python requests": "import requests", "python httpx": "import httpx"}


def report(line: dict) -> None:
    with open(os.environ["OC_RESULTS"], "a") as results:
        results.write(json.dumps(line) + "\n")


def oc(*words: str, code: int | None = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        ["oc", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SEC_MAX,
    )
    assert code is None or done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done


def seen(nonce: str) -> dict:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(os.environ["OC_OBSERVER_URL"] + "/seen/" + nonce) as reply:
        return json.load(reply)


def call(sandbox: str, token: str, name: str, bare: bool) -> None:
    nonce = f"{name.replace(' ', '-')}-{'bare' if bare else 'own'}"
    words = [
        word.replace("URL", f"{API_URL}/v1/messages?nonce={nonce}").replace("TOKEN", token)
        for word in PROGRAMS[name]
    ]
    if bare:
        words = ["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", *words]
    is_git = name == "git"
    done = oc("exec", sandbox, "--", *words, code=None if is_git else 0)
    # git appends the name of a repository's file to whatever it is given.
    arrived = seen(urllib.parse.quote(nonce) + ("/info/refs" if is_git else ""))
    assert arrived["headers"]["x-api-key"] == VALUE, "the API got something else"
    assert VALUE not in done.stdout + done.stderr, "the value came back"
    assert is_git or token in done.stdout, f"the token did not come back: {done.stdout}"


def missing(sandbox: str, name: str) -> bool:
    """Whether this machine has no such library; never in CI, which installs them."""
    statement = MAY_BE_MISSING.get(name)
    if statement is None or os.environ.get("CI") == "true":
        return False
    return oc("exec", sandbox, "--", "/usr/bin/python3", "-c", statement, code=None).returncode != 0


def main() -> None:
    store = json.loads(oc("secret-store", "create", "--name", "trust", "--json").stdout)["id"]
    oc("secret", "set", store, "TRUST_KEY", VALUE, "--allowed-hosts", HOST)
    sandbox = json.loads(oc("create", "--secret-store", "trust", "--json").stdout)["sandboxID"]
    token = oc("exec", sandbox, "--", "printenv", "TRUST_KEY").stdout.strip()
    for name in PROGRAMS:
        if missing(sandbox, name):
            report({"method": f"trust: {name}", "check": "", "result": "not installed"})
            continue
        for bare in (False, True):
            if bare and name in NEED_THE_ENVIRONMENT:
                continue
            line = {"method": f"trust: {name}", "check": "bare" if bare else "own environment"}
            try:
                call(sandbox, token, name, bare)
                report(line | {"result": "passed"})
            except Exception:
                detail = traceback.format_exc(limit=-2)
                report(line | {"result": "failed", "detail": detail})
    oc("sandbox", "delete", sandbox)
    oc("secret-store", "delete", store)
    report({"done": True})


if __name__ == "__main__":
    main()
