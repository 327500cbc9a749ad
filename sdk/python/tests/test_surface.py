"""Every name of the API's description is there."""

from __future__ import annotations

import inspect

import pytest

import opencomputer as oc

METHODS = {
    "Project": "create list get update delete set_secret list_secrets delete_secret",
    "SecretStore": "create list get update delete set_secret list_secrets delete_secret",
    "Sandbox": "create connect create_from_checkpoint create_checkpoint_patch "
    "list_checkpoint_patches delete_checkpoint_patch kill is_running hibernate wake reboot "
    "power_cycle scale set_autoscale get_autoscale set_scaling_lock get_scaling_lock "
    "get_allowed_hosts set_timeout download_url upload_url create_checkpoint list_checkpoints "
    "restore_checkpoint delete_checkpoint create_preview_url list_preview_urls "
    "delete_preview_url rotate_preview_auth_token close commands id domain",
    "Exec": "run start background attach list kill shell reattach_shell",
    "ExecSession": "done send_stdin kill close",
    "Shell": "run close",
    "Filesystem": "read read_bytes write list make_dir remove exists",
    "Pty": "create",
    "PtySession": "send recv close",
    "Agent": "start attach list",
    "AgentSession": "send_prompt interrupt configure collect_events wait kill close",
    "AgentEvent": "get __getitem__",
    "Image": "base apt_install pip_install run_commands env workdir add_file add_local_file "
    "add_local_dir builder_memory to_dict cache_key",
    "Snapshots": "create list get delete close",
    "Template": "build list get delete",
    "Mounts": "add add_command list remove",
    "Usage": "by_sandbox by_tag for_sandbox",
    "Tags": "list_keys get set",
}


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_is_there(kind: str) -> None:
    missing = [name for name in METHODS[kind].split() if not hasattr(getattr(oc, kind), name)]
    assert missing == []


def test_everything_exported_is_documented() -> None:
    for name in oc.__all__:
        kind = getattr(oc, name)
        if inspect.isclass(kind) and issubclass(kind, Exception):
            assert kind.__doc__, name
