//! The texts of a kit: a policy for `oc proxy`, and words for whoever configures another proxy.

use super::kit::{
    API, BELOW_WILD, INSIDE, INSIDE_ADDRESS, LOOKALIKES, OTHER, OUTSIDE, PLAIN, WILD,
};

/// Names that lead to this machine.
fn names() -> Vec<&'static str> {
    let names = [API, OTHER, WILD, PLAIN, OUTSIDE, BELOW_WILD];
    names.into_iter().chain(LOOKALIKES).collect()
}

/// The policy, with role, host and token of each secret.
pub fn policy(secrets: &[(&str, &str, &str)]) -> String {
    let mut text =
        String::from("# The policy of the attack suite: `oc proxy --policy policy.toml`\n");
    for (role, host, token) in secrets {
        text += &format!(
            "\n[[secret]]\nname = \"{role}\"\ntoken = \"{token}\"\n\
             value_file = \"{role}.value\"\nhosts = [\"{host}\"]\n"
        );
    }
    let mut pins: Vec<_> = names()
        .iter()
        .map(|name| format!("\"{name}\" = \"127.0.0.1\""))
        .collect();
    pins.push(format!("\"{INSIDE}\" = \"{INSIDE_ADDRESS}\""));
    let pins = pins.join(", ");
    text += &format!(
        "\n[egress]\nallow = [\"*.oc-check.localhost\"]\nallow_private = [\"127.0.0.1/32\"]\n\
         extra_roots = [\"upstream-ca.pem\"]\ninspect_all = true\nresolve = {{ {pins} }}\n\
         \n[ca]\ncert = \"proxy-ca.pem\"\nkey = \"proxy-ca.key\"\n"
    );
    text
}

/// The same for people.
pub fn readme(secrets: &[(&str, &str, &str)]) -> String {
    let rows: String = secrets
        .iter()
        .map(|(role, host, token)| {
            format!("| `{role}` | `{host}` | `{token}` | `{role}.value` |\n")
        })
        .collect();
    let hosts: String = names()
        .iter()
        .map(|name| format!("127.0.0.1 {name}\n"))
        .collect();
    format!(
        "# A kit for `oc proxy check`\n\n\
         The attacks run against any proxy that is told the following. `policy.toml` says it in the \
         format of `oc proxy`.\n\n\
         1. Clients speak to it with CONNECT. It decrypts TLS to hosts that have a secret.\n\
         2. A client that sends a token has it replaced by the value, towards the token's host only \
         (values are in files, byte for byte, without a line end):\n\n\
         | secret | host | token | value |\n|---|---|---|---|\n{rows}\n\
         3. Hosts it may speak to: `*.oc-check.localhost`, on every port, and nothing else. TLS to all \
         of them is decrypted: what is inside a tunnel nobody can judge.\n\
         4. Addresses it may reach: 127.0.0.1, and no other that is not public. `{INSIDE}` leads to \
         {INSIDE_ADDRESS}, which is to be refused.\n\
         5. Hosts prove themselves by certificates of `upstream-ca.pem`: trust it for hosts. (Its key \
         is here too: never trust it anywhere else.)\n\
         6. Names lead to this machine. Where the proxy has no setting for that, `/etc/hosts` has:\n\n\
         ```\n{hosts}{INSIDE_ADDRESS} {INSIDE}\n```\n\n\
         Put the certificate of the proxy's own authority beside this file as `proxy-ca.pem`, or name \
         it with `--ca`. A proxy whose tokens look otherwise: `--token`, `--value-file` and `--host` \
         stand in for the secret `primary`; attacks that need another secret are skipped when the \
         proxy does not know it.\n"
    )
}
