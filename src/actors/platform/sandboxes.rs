//! Sandboxes looked at without touching them: none of this wakes or waits for one.

use std::sync::Arc;

use super::{Caller, Platform};
use crate::actors::aggregate::Reject;
use crate::actors::entity::Failure;
use crate::actors::sandbox::Sandbox;
use crate::ids::SandboxId;

impl Platform {
    /// Whom a sandbox belongs to, for a request whose right to it was proved by other means than a
    /// credential of the organization.
    ///
    /// # Errors
    /// Not found.
    pub async fn owner_of(&self, id: &SandboxId) -> Result<Caller, Failure> {
        let state = self.sandboxes.inspect(&Sandbox::stream(id)).await?;
        let details = state.details.as_ref();
        let org = details.map(|details| details.org_id);
        let org = org.ok_or_else(|| Reject::not_found("sandbox"))?;
        Ok(Caller { org, key: None })
    }

    /// A sandbox whose data plane can be used, now or once it is awake.
    ///
    /// # Errors
    /// Not found; [`Failure::Gone`] when it never will be again.
    pub async fn usable_sandbox(
        &self,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<Arc<Sandbox>, Failure> {
        let state = self.get_sandbox(caller, id).await?;
        match state.phase.status() {
            Some(status @ ("stopped" | "error")) => Err(Failure::Gone(status)),
            _ => Ok(state),
        }
    }
}
