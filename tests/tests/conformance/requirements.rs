//! The requirements of a section, and what becomes of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pouch_tests::runtime;

/// A runtime that does not meet a requirement, and why.
pub struct Unmet {
    runtime: &'static str,
    reason: &'static str,
}

/// pouch-vm does not meet a requirement.
pub const fn not_pouch(reason: &'static str) -> Unmet {
    Unmet { runtime: "pouch-vm", reason }
}

/// runc 1.1.15 does not meet a requirement.
pub const fn not_runc(reason: &'static str) -> Unmet {
    Unmet { runtime: "runc", reason }
}

/// A section of a document of the specification.
pub struct Section {
    document: &'static str,
    name: &'static str,
    failures: Vec<String>,
}

impl Section {
    /// Begins the section of this name.
    pub fn new(document: &'static str, name: &'static str) -> Self {
        Section { document, name, failures: Vec::new() }
    }

    /// Checks a requirement that every runtime is known to meet. The check panics if it is not met.
    pub fn must(&mut self, requirement: &'static str, check: impl FnOnce()) {
        self.must_but(requirement, &[], check);
    }

    /// Checks a requirement that some runtimes are known not to meet.
    pub fn must_but(&mut self, requirement: &'static str, unmet: &[Unmet], check: impl FnOnce()) {
        let name = runtime();
        let known = unmet.iter().find(|unmet| name.ends_with(unmet.runtime));
        let met = catch_unwind(AssertUnwindSafe(check));
        let result = match (&met, known) {
            (Ok(()), None) => "yes",
            (Err(_), Some(unmet)) => unmet.reason,
            (Ok(()), Some(_)) => {
                self.failures.push(format!("{requirement}: is met, and was known not to be"));
                "yes, unexpectedly"
            }
            (Err(panic), None) => {
                self.failures.push(format!("{requirement}: {}", text(panic.as_ref())));
                "no, unexpectedly"
            }
        };
        println!("\nCONFORMANCE | {} | {} | {requirement} | {result}", self.document, self.name);
    }
}

/// What a check said when it panicked.
fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

impl Drop for Section {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let (document, name) = (self.document, self.name);
            assert!(self.failures.is_empty(), "{document}, {name}:\n{}", self.failures.join("\n"));
        }
    }
}
