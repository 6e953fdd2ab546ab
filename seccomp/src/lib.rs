//! Filters of system calls (seccomp(2)), from a list of rules.
//!
//! seccompiler compares a number with each call of a list in turn. The kernel runs a filter once for every number
//! when it is installed (kernel/seccomp.c, `seccomp_cache_prepare`), so that the list's length counts five hundred
//! times for each filter. Here a search tree finds the call, and seccompiler judges only the arguments of those calls
//! that are limited.

mod only;
mod tree;

use std::collections::BTreeMap;

use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, TargetArch};

pub use self::only::{NAMESPACES, Only};
use self::tree::Verdict;

/// What happens to a system call.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// It is allowed.
    Allow,
    /// It is allowed with these arguments only.
    Only(Only),
    /// It fails with this error number.
    Fail(u16),
}

/// What happens to a call without a rule, or with other arguments than its rule has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// It ends the process.
    Kill,
    /// It fails with this error number.
    Fail(u16),
}

/// The filter with these rules, each for a system call of x86-64. A call of another architecture ends the process. Of
/// two rules for one call, the later one holds.
///
/// # Errors
/// seccompiler's error, for a list of arguments that is empty.
pub fn filter(
    rules: impl IntoIterator<Item = (libc::c_long, Rule)>,
    other: Other,
) -> Result<BpfProgram, BackendError> {
    let mut verdicts = BTreeMap::new();
    let mut judged = BTreeMap::new();
    for (call, rule) in rules {
        let verdict = match rule {
            Rule::Allow => Verdict::Allow,
            Rule::Fail(error) => Verdict::Fail(error),
            Rule::Only(only) => {
                judged.insert(call, only.rules()?);
                Verdict::Judge
            }
        };
        verdicts.insert(call as u32, verdict);
    }
    let (action, verdict) = match other {
        Other::Kill => (SeccompAction::KillProcess, Verdict::Kill),
        Other::Fail(error) => (SeccompAction::Errno(error.into()), Verdict::Fail(error)),
    };
    let judge = SeccompFilter::new(judged, action, SeccompAction::Allow, TargetArch::x86_64)?.try_into()?;
    Ok(tree::program(&verdicts, verdict, judge))
}
