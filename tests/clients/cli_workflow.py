"""The example workflow of the projects document, line by line, as a user types it.

Every line runs in `sh`, with only the placeholders filled in: the ids, and the stand-in in place
of `https://api.anthropic.com`. What each prints is compared with what the document shows. The
other commands of the document follow.
"""

import json
import os
import re
import subprocess
import traceback
import urllib.request
from contextlib import contextmanager

API_URL = f"https://{os.environ['OC_STANDIN_HOSTS'].split(',')[0]}:{os.environ['OC_STANDIN_PORT']}"
COMMAND_SEC_MAX = 60
API_KEY = "sk-ant-workflow-0123456789abcdef"
DATABASE_URL = "postgres://user:pass@host/db"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TOKEN = r"osb_sealed_[0-9a-f]{32}"

# Verbatim from "Example Workflow", but for the value of the key.
CREATE_PROJECT = "oc project create --name my-agent --cpu 2 --memory 1024 --timeout 600"
SET_API_KEY = f"oc secret set <project-id> ANTHROPIC_API_KEY {API_KEY}"
SET_DATABASE_URL = "oc secret set <project-id> DATABASE_URL postgres://user:pass@host/db"
LIST_SECRETS = "oc secret list <project-id>"
CREATE_SANDBOX = "oc create --project my-agent"
SEE_TOKENS = "oc exec <sandbox-id> -- env | grep -E 'API_KEY|DATABASE'"
CALL_API = r"""oc exec <sandbox-id> -- curl -s https://api.anthropic.com/v1/messages \
  -H "x-api-key: \$ANTHROPIC_API_KEY" \
  -H "anthropic-version: 2023-06-01" \
  -H "content-type: application/json" \
  -d '{"model":"claude-haiku-4-5-20251001","max_tokens":10,"messages":[{"role":"user","content":"hi"}]}'"""
DELETE_SANDBOX = "oc sandbox delete <sandbox-id>"
DELETE_PROJECT = "oc project delete <project-id>"

placeholders: dict[str, str] = {"https://api.anthropic.com": API_URL}


def report(line: dict) -> None:
    with open(os.environ["OC_RESULTS"], "a") as results:
        results.write(json.dumps(line) + "\n")


@contextmanager
def step(command: str, what: str):
    """One line of the document; its row is the command without arguments."""
    words = re.match(r"(?:.* \| )?(oc(?: [a-z][a-z-]*){1,2})", command)
    line = {"method": words[1], "check": what, "result": "passed"}
    try:
        yield
    except Exception:
        line |= {"result": "failed", "detail": f"$ {command}\n{traceback.format_exc(limit=-2)}"}
    report(line)


def sh(command: str, code: int = 0) -> str:
    """Runs the line; its exit code must be `code`; gives what it printed."""
    for name, value in placeholders.items():
        command = command.replace(name, value)
    assert not re.search(r"<(project|sandbox)-id>", command), "an id is not known yet"
    done = subprocess.run(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SEC_MAX,
    )
    assert done.returncode == code, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert not re.search("|".join(map(re.escape, (API_KEY, DATABASE_URL))), done.stdout), "a value"
    return done.stdout if code == 0 else done.stderr


def expect(pattern: str, text: str) -> re.Match:
    found = re.fullmatch(pattern, text, re.DOTALL)
    assert found, f"printed {text!r}, expected /{pattern}/"
    return found


def example_workflow() -> None:
    with step(CREATE_PROJECT, "create a project"):
        printed = expect(rf"Created project my-agent \(id: ({UUID})\)\n", sh(CREATE_PROJECT))
        placeholders["<project-id>"] = printed[1]
    project = placeholders.get("<project-id>")
    for command, name in ((SET_API_KEY, "ANTHROPIC_API_KEY"), (SET_DATABASE_URL, "DATABASE_URL")):
        with step(command, f"add {name}"):
            expect(f"Secret {name} set on project {project}\n", sh(command))
    with step(LIST_SECRETS, "names only"):
        expect("ANTHROPIC_API_KEY\nDATABASE_URL\n", sh(LIST_SECRETS))
    with step(CREATE_SANDBOX, "inherits config and secrets"):
        printed = expect(r"Created sandbox (\S+) \(status: running\)\n", sh(CREATE_SANDBOX))
        placeholders["<sandbox-id>"] = printed[1]
        shown = json.loads(sh("oc sandbox get <sandbox-id> --json"))
        assert (shown["cpuCount"], shown["memoryMB"]) == (2, 1024), shown
    with step(SEE_TOKENS, "secrets are sealed inside the sandbox"):
        lines = sorted(sh(SEE_TOKENS).splitlines())
        assert len(lines) == 2, lines
        sealed = expect(f"ANTHROPIC_API_KEY=({TOKEN})", lines[0])[1]
        expect(f"DATABASE_URL={TOKEN}", lines[1])
    with step(CALL_API, "HTTPS requests get real values, echoes come back sealed"):
        call = CALL_API.replace("/v1/messages", "/v1/messages?nonce=workflow")
        echo = json.loads(sh(call))["echo"]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(os.environ["OC_OBSERVER_URL"] + "/seen/workflow") as reply:
            arrived = json.load(reply)
        assert arrived["headers"]["x-api-key"] == API_KEY, "the API got something else"
        assert json.loads(arrived["body"])["max_tokens"] == 10
        assert echo["headers"]["x-api-key"] == sealed, "the echo is not sealed"


def rest_of_the_document() -> None:
    command = "oc project list"
    with step(command, "the table"):
        header, row = sh(command).splitlines()
        assert header.split() == ["ID", "NAME", "TEMPLATE", "CPU", "MEMORY", "TIMEOUT"]
        project = placeholders["<project-id>"]
        assert row.split() == [project, "my-agent", "default", "2", "1024", "600"], row
        assert header.index("NAME") == row.index("my-agent"), "columns are aligned"
    command = "oc project update <project-id> --memory 2048"
    with step(command, "only the given flag changes"):
        expect("Updated project my-agent\n", sh(command))
    command = "oc project get <project-id>"
    with step(command, "details"):
        shown = dict(line.split(":", 1) for line in sh(command).splitlines())
        found = {name: value.strip() for name, value in shown.items()}
        expected = {"Name": "my-agent", "Template": "default", "CPU": "2", "Memory": "2048MB"}
        assert found.items() >= (expected | {"Timeout": "600s"}).items(), found
    command = f'echo "{API_KEY}" | oc secret set <project-id> PIPED --from-stdin'
    with step(command, "from stdin"):
        expect(r"Secret PIPED set on project \S+\n", sh(command))
    command = "oc secret delete <project-id> PIPED"
    with step(command, "delete"):
        expect(r"Secret PIPED deleted from project \S+\n", sh(command))
        expect("ANTHROPIC_API_KEY\nDATABASE_URL\n", sh(LIST_SECRETS))
    command = "oc exec <sandbox-id> -- echo '$ANTHROPIC_API_KEY'"
    with step(command, "prints the token"):
        expect(f"{TOKEN}\n", sh(command))
    command = "oc exec <sandbox-id> -- sh -c 'exit 7'"
    with step(command, "passes the exit code on"):
        sh(command, code=7)
    command = "oc create --project my-agent --timeout 900"
    with step(command, "a flag overrides the project"):
        created = expect(r"Created sandbox (\S+) \(status: running\)\n", sh(command))[1]
        assert json.loads(sh(f"oc sandbox get {created} --json"))["timeout"] == 900
        expect(f"Sandbox {created} killed.\n", sh(f"oc sandbox delete {created}"))
    command = "oc project delete <short-lived>"
    with step(command, "running sandboxes are not affected"):
        placeholders["<short-lived>"] = json.loads(sh("oc project create --name gone --json"))["id"]
        sh("oc secret set <short-lived> DATABASE_URL postgres://user:pass@host/db")
        created = json.loads(sh("oc create --project gone --json"))["sandboxID"]
        expect(r"Project \S+ deleted\.\n", sh(command))
        expect(f"{TOKEN}\n", sh(f"oc exec {created} -- printenv DATABASE_URL"))
        sh(f"oc sandbox delete {created}")
    command = "oc create --project nobody"
    with step(command, "an unknown project is refused"):
        assert "project not found: nobody" in sh(command, code=3)


def clean_up() -> None:
    with step(DELETE_SANDBOX, "clean up"):
        expect(r"Sandbox \S+ killed\.\n", sh(DELETE_SANDBOX))
    with step(DELETE_PROJECT, "clean up"):
        expect(rf"Project {UUID} deleted\.\n", sh(DELETE_PROJECT))
        expect(r"No projects found\.\n", sh("oc project list"))


if __name__ == "__main__":
    example_workflow()
    rest_of_the_document()
    clean_up()
    report({"done": True})
