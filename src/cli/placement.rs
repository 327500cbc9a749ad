//! Flags for where in requests a secret may stand, and how that is shown.

use clap::Args;

use super::slice::Words;
use crate::events::families::SecretPlacement;

/// Flags of `oc secret set`. Without any the secret may stand anywhere.
#[derive(Args)]
pub struct PlacementFlags {
    /// Header fields the value may stand in, and nowhere else (repeatable, comma-separated)
    #[arg(long = "header", value_name = "NAME", value_parser = Words::parse)]
    header: Vec<Words>,
    /// Methods of requests it may be in (repeatable, comma-separated)
    #[arg(long = "method", value_name = "METHOD", value_parser = Words::parse)]
    method: Vec<Words>,
    /// Path that requests it may be in are below
    #[arg(long = "path-prefix", value_name = "PATH")]
    path_prefix: Option<String>,
    /// How often it may stand in one request
    #[arg(long = "max-per-request", value_name = "COUNT")]
    max_per_request: Option<u32>,
    /// Refuse requests to its hosts that bring another credential
    #[arg(long)]
    exclusive: bool,
    /// Keep cookies of its hosts from sandboxes
    #[arg(long = "keep-cookies")]
    keep_cookies: bool,
    /// Seal the access and refresh tokens (OAuth) that its hosts hand out
    #[arg(long = "seal-tokens")]
    seal_tokens: bool,
    /// Refuse requests to its hosts with other methods and outside of the path
    #[arg(long)]
    confine: bool,
}

impl PlacementFlags {
    /// The placement they ask for, if any.
    pub fn read(self) -> Option<SecretPlacement> {
        let methods = Words::merge(self.method).map(|methods| {
            let upper = methods.iter().map(|method| method.to_ascii_uppercase());
            upper.collect()
        });
        let placement = SecretPlacement {
            headers: Words::merge(self.header),
            methods,
            path_prefix: self.path_prefix,
            max_per_request: self.max_per_request,
            exclusive: self.exclusive,
            keep_cookies: self.keep_cookies,
            seal_tokens: self.seal_tokens,
            confine: self.confine,
        };
        (placement != SecretPlacement::default()).then_some(placement)
    }
}

/// A placement in a few words.
pub fn described(placement: &SecretPlacement) -> String {
    let mut parts = Vec::new();
    if let Some(headers) = &placement.headers {
        parts.push(format!("headers {}", headers.join(", ")));
    }
    if let Some(methods) = &placement.methods {
        parts.push(methods.join(", "));
    }
    if let Some(prefix) = &placement.path_prefix {
        parts.push(format!("below {prefix}"));
    }
    if let Some(max) = placement.max_per_request {
        parts.push(format!("{max} a request"));
    }
    if placement.exclusive {
        parts.push("exclusive".to_owned());
    }
    if placement.keep_cookies {
        parts.push("no cookies".to_owned());
    }
    if placement.seal_tokens {
        parts.push("sealed tokens".to_owned());
    }
    if placement.confine {
        parts.push("confined".to_owned());
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: PlacementFlags,
    }

    fn read(words: &[&str]) -> Option<SecretPlacement> {
        let words = ["set"].iter().chain(words);
        Command::try_parse_from(words).expect("parses").flags.read()
    }

    #[test]
    fn flags_become_a_placement_only_when_given() {
        assert_eq!(read(&[]), None);
        let all = [
            "--header=Authorization,x-api-key",
            "--method=post",
            "--path-prefix=/v1/",
            "--max-per-request=1",
            "--exclusive",
            "--keep-cookies",
            "--seal-tokens",
            "--confine",
        ];
        let placement = read(&all).expect("a placement");
        assert_eq!(
            described(&placement),
            "headers Authorization, x-api-key; POST; below /v1/; 1 a request; exclusive; no cookies; \
             sealed tokens; confined"
        );
    }
}
