//! Projects and their secrets.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{Caller, NewSecret, Platform};
use crate::actors::entity::Failure;
use crate::actors::idempotency::{Begun, Created, Keyed};
use crate::actors::project::{Project, ProjectCommand, ProjectSettings};
use crate::actors::secrets::SecretCommand;
use crate::ids::ProjectId;

impl Platform {
    /// Makes a project; once for each key.
    pub async fn create_project(
        &self,
        caller: &Caller,
        settings: ProjectSettings,
        keyed: Option<&Keyed>,
    ) -> Result<Created<Project>, Failure> {
        let first = match self.begin(caller, keyed).await? {
            Begun::First(first) => first,
            Begun::Repeat(state) => return Ok(Created::again(state)),
        };
        let id = ProjectId::generate();
        let stream = Project::stream(&id);
        let command = ProjectCommand::Create {
            id,
            org: caller.org,
            settings,
            memory_mb_max: self.limits.memory_mb_max.into(),
            at: OffsetDateTime::now_utc(),
        };
        let beside = first.beside(&stream)?;
        let done = self
            .execute_beside(&self.projects, &stream, command, &caller.who(), beside)
            .await;
        self.conclude(first, done.map(|done| done.state)).await
    }

    /// Changes a project.
    pub async fn update_project(
        &self,
        caller: &Caller,
        id: &ProjectId,
        settings: ProjectSettings,
    ) -> Result<Arc<Project>, Failure> {
        let command = ProjectCommand::Update {
            org: caller.org,
            settings,
            memory_mb_max: self.limits.memory_mb_max.into(),
            at: OffsetDateTime::now_utc(),
        };
        self.project(id, command, caller).await
    }

    /// Deletes a project and destroys its data key.
    pub async fn delete_project(&self, caller: &Caller, id: &ProjectId) -> Result<(), Failure> {
        let command = ProjectCommand::Delete(caller.org, OffsetDateTime::now_utc());
        self.project(id, command, caller).await?;
        self.shred_or_keep(&Project::stream(id)).await;
        Ok(())
    }

    /// A project as the caller may see it.
    pub async fn get_project(
        &self,
        caller: &Caller,
        id: &ProjectId,
    ) -> Result<Arc<Project>, Failure> {
        let state = self.projects.inspect(&Project::stream(id)).await?;
        state.visible_to(&caller.org)?;
        Ok(state)
    }

    async fn project(
        &self,
        id: &ProjectId,
        command: ProjectCommand,
        caller: &Caller,
    ) -> Result<Arc<Project>, Failure> {
        let stream = Project::stream(id);
        Ok(self
            .execute(&self.projects, &stream, command, &caller.who())
            .await?
            .state)
    }

    /// Sets a project's secret and refreshes the sandboxes that use it.
    pub async fn set_project_secret(
        self: &Arc<Self>,
        caller: &Caller,
        id: &ProjectId,
        new: NewSecret,
    ) -> Result<(), Failure> {
        self.get_project(caller, id).await?;
        let stream = Project::stream(id);
        let sealed = self.seal_secret(&stream, "project.secret_set.v1", new);
        let set = match sealed.await {
            Ok(set) => set,
            Err(failure) => {
                // A delete in between destroyed the key: that is the reason, not the cipher.
                self.get_project(caller, id).await?;
                return Err(failure);
            }
        };
        let name = set.name.clone();
        let command = ProjectCommand::Secret(caller.org, SecretCommand::Set(set));
        let state = self.project(id, command, caller).await?;
        self.bring_to_all(&id.to_string(), &name, &state.secrets, &stream)
            .await;
        Ok(())
    }

    /// Revokes a secret: it is gone, and its tokens are dead in every sandbox, for good. Whether
    /// all sandboxes that run were reached; the others are within the reconciler's next round, and
    /// none comes up again with it.
    pub async fn revoke_project_secret(
        self: &Arc<Self>,
        caller: &Caller,
        id: &ProjectId,
        name: String,
    ) -> Result<bool, Failure> {
        let revoke = SecretCommand::Revoke {
            name: name.clone(),
            at: OffsetDateTime::now_utc(),
        };
        let command = ProjectCommand::Secret(caller.org, revoke);
        let state = self.project(id, command, caller).await?;
        let stream = Project::stream(id);
        let id = id.to_string();
        Ok(self.bring_to_all(&id, &name, &state.secrets, &stream).await)
    }

    /// Deletes a project's secret.
    pub async fn delete_project_secret(
        &self,
        caller: &Caller,
        id: &ProjectId,
        name: String,
    ) -> Result<(), Failure> {
        let delete = SecretCommand::Delete {
            name,
            at: OffsetDateTime::now_utc(),
        };
        self.project(id, ProjectCommand::Secret(caller.org, delete), caller)
            .await
            .map(drop)
    }
}
