//! Identifiers: a project id can't be passed where a sandbox id is meant.
//!
//! Stored objects have UUID version 7 text (they sort by time of creation); a sandbox has `sb-`
//! and a lower-case ULID, so that `<id>-p<port>` fits a DNS label; sessions have 8 hex digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;
use uuid::Uuid;

/// Text that is not an identifier of the asked kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} id")]
pub struct BadId {
    kind: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id, later in order than every one made before it on this machine.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id as 16 bytes.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }

            /// The id that [`Self::to_bytes`] gave these bytes.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                // The hyphenated form only: `Uuid` also reads braces, URNs and bare hex.
                match text.len() {
                    36 => text.parse().map(Self).map_err(|_| BadId { kind: $kind }),
                    _ => Err(BadId { kind: $kind }),
                }
            }
        }
    };
}

uuid_id!(
    /// A tenant.
    OrgId, "organization"
);
uuid_id!(
    /// A project.
    ProjectId, "project"
);
uuid_id!(
    /// A secret store.
    StoreId, "secret store"
);
uuid_id!(
    /// One secret's entry in a project or store.
    SecretId, "secret"
);
uuid_id!(
    /// A checkpoint of a sandbox.
    CheckpointId, "checkpoint"
);
uuid_id!(
    /// A patch of a checkpoint.
    PatchId, "patch"
);
uuid_id!(
    /// An image, with or without a name.
    ImageId, "image"
);
uuid_id!(
    /// An API key's record (never the key itself).
    KeyId, "API key"
);

/// A sandbox: `sb-` and 26 lower-case characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// A new id.
    pub fn generate() -> Self {
        Self(format!(
            "sb-{}",
            Ulid::generate().to_string().to_lowercase()
        ))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SandboxId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = BadId { kind: "sandbox" };
        let rest = text.strip_prefix("sb-").ok_or_else(|| bad.clone())?;
        let well_formed = rest.len() == 26
            && rest
                .bytes()
                .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
            && Ulid::from_string(&rest.to_uppercase()).is_ok();
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(bad)
        }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_what_they_print_and_nothing_else() {
        let sandbox = SandboxId::generate();
        assert_eq!(sandbox.as_str().parse::<SandboxId>(), Ok(sandbox.clone()));
        let project = ProjectId::generate();
        assert_eq!(project.to_string().parse::<ProjectId>(), Ok(project));
        for bad in [
            "",
            "sb-",
            "sb-ABC",
            "../etc",
            "sb-0123456789012345678901234u",
            "x",
        ] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad}");
            assert!(bad.parse::<ProjectId>().is_err(), "{bad}");
        }
        let bare = project.to_string().replace('-', "");
        assert!(bare.parse::<ProjectId>().is_err());
    }
}
