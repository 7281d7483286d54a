//! The steps of a sync, as people see them.

use crate::{kinds::Context, progress::StepHandle};

/// The steps of a sync.
pub(super) struct Steps {
    pub(super) metadata: StepHandle,
    pub(super) known_manifests: StepHandle,
    pub(super) known_blobs: StepHandle,
    pub(super) download: StepHandle,
    pub(super) save: StepHandle,
    pub(super) save_tags: StepHandle,
}

impl Steps {
    pub(super) fn announce(context: &Context) -> Self {
        let step = |step_type, description| context.report.step(step_type, description, 0);
        Self {
            metadata: step("sync_step_metadata", "Downloading manifests"),
            known_manifests: step("get_local", "Copying units already in pulp"),
            known_blobs: step("get_local", "Copying units already in pulp"),
            download: step("sync_step_download", "Downloading remote files"),
            save: step("sync_step_save", "Saving Manifests and Blobs"),
            save_tags: step("sync_step_save", "Saving Tags"),
        }
    }
}

impl StepHandle {
    /// Does a step that is done at once.
    pub(super) fn all(&self, items: u64) {
        self.begin();
        self.add_total(items);
        self.advance(items);
        self.finish();
    }
}
