//! Follows changes of the namespace while the container runs, such as those by `docker network connect`.

use std::thread;
use std::time::Duration;

use super::WireError;
use super::netlink::{Changes, NetlinkError};
use pouch_errors::chain;

/// An engine makes several changes in a row, which are handled together.
const SETTLE: Duration = Duration::from_millis(50);
/// Stack size of the thread: lists of interfaces and routes are on the heap.
const STACK: usize = 256 * 1024;

/// Calls `update` after each of the `changes`, in a separate thread, until the process ends. Changes that cannot be
/// applied are passed to `report`, once as long as they last.
///
/// # Errors
/// [`WireError`] if there is no thread for it.
pub fn follow(
    mut changes: Changes,
    update: impl Fn() -> Vec<WireError> + Send + 'static,
    report: impl Fn(&str) + Send + 'static,
) -> Result<(), WireError> {
    let spawned = thread::Builder::new().name("network".to_owned()).stack_size(STACK).spawn(move || {
        let mut told = Vec::new();
        while changes.wait(SETTLE).is_ok() {
            let problems: Vec<String> = update().iter().map(|error| chain(error)).collect();
            for problem in news(&problems, &told) {
                report(&format!("a change of the network could not be applied in the guest: {problem}"));
            }
            told = problems;
        }
    });
    spawned.map(drop).map_err(|error| NetlinkError::other("follow changes of the network", error).into())
}

/// Those of `problems` that were not there the last time.
fn news<'a>(problems: &'a [String], told: &[String]) -> Vec<&'a String> {
    problems.iter().filter(|problem| !told.contains(problem)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_when_it_comes_and_not_while_it_lasts() {
        let problems = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let (one, both, none) = (problems(&["one"]), problems(&["one", "two"]), problems(&[]));
        assert_eq!(news(&one, &none), ["one"]);
        assert_eq!(news(&both, &one), ["two"]);
        assert!(news(&both, &both).is_empty());
        assert_eq!(news(&one, &none), ["one"], "it went, and has come again");
    }
}
