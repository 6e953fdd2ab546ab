//! Restricts a thread to the share with Landlock, if the host kernel supports it.
//!
//! The mounts of the process contain little else. But a descriptor in `/proc/self/fd` may refer to a file
//! outside the share, and Landlock keeps the file server from reopening such a disk or device.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError,
};

use super::confine::SHARE;

/// The links to the process's open files, not the files themselves.
const DESCRIPTORS: &str = "/proc/self/fd";

/// A thread could not be restricted.
#[derive(Debug, thiserror::Error)]
pub enum RestrictError {
    /// A directory does not exist.
    #[error("{SHARE} or {DESCRIPTORS} could not be opened")]
    Path(#[from] landlock::PathFdError),
    /// The kernel refused.
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
}

/// The access that the file server needs in the share: all but executing.
fn served() -> landlock::BitFlags<AccessFs> {
    AccessFs::from_all(ABI::V5) & !AccessFs::Execute
}

/// Restricts the calling thread, and threads that it starts, to opening and changing files in the share, also through
/// the links in `/proc/self/fd`. There is no restriction on a kernel without Landlock, or with its first version
/// (before Linux 5.19), which does not allow renaming between directories.
///
/// # Errors
/// [`RestrictError`] if a kernel that has it refuses.
pub fn restrict_to_share() -> Result<(), RestrictError> {
    let renaming =
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::Refer);
    if renaming.is_err() {
        return Ok(());
    }
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new(SHARE)?, served()))?
        .add_rule(PathBeneath::new(PathFd::new(DESCRIPTORS)?, AccessFs::ReadDir))?
        .restrict_self()?;
    Ok(())
}
