//! The attacks, by what they go for. The rows are those of the threat list in `docs/proxy.md`.

mod addresses;
mod answers;
mod echo;
mod h2;
mod h2_flood;
mod h2_places;
mod hello;
mod identity;
mod injection;
mod limits;
mod names;
mod smuggling;
mod socket;
mod tokens;
mod upgrade;
mod upstream_tls;

use super::outcome::Check;

/// A row of a table of attacks.
macro_rules! attack {
    ($row:literal, $name:literal, $run:expr) => {
        $crate::cli::proxy::check::outcome::Check {
            name: $name,
            row: $row,
            run: |world| Box::pin(($run)(world)),
        }
    };
}
use attack;

/// Every attack, in the order of the table.
pub fn all() -> Vec<Check> {
    let mut all = Vec::new();
    all.extend(echo::attacks());
    all.extend(socket::attacks());
    all.extend(answers::attacks());
    all.extend(identity::attacks());
    all.extend(hello::attacks());
    all.extend(names::attacks());
    all.extend(addresses::attacks());
    all.extend(smuggling::attacks());
    all.extend(h2::attacks());
    all.extend(h2_places::attacks());
    all.extend(tokens::attacks());
    all.extend(upgrade::attacks());
    all.extend(injection::attacks());
    all.extend(upstream_tls::attacks());
    all.extend(limits::attacks());
    all.extend(h2_flood::attacks());
    all
}
