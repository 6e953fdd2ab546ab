//! A queue for `exec` requests to the agent.
//!
//! The agent starts one process after the other. If a hundred requests were sent at once, the response to the
//! last would exceed the timeout of a working agent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::agent::AgentError;

/// Who asks next.
#[derive(Default)]
pub struct ExecQueue {
    turn: Mutex<()>,
    /// How often the agent did not respond.
    silences: AtomicU64,
}

impl ExecQueue {
    /// Sends the request when the earlier ones have been answered. If the agent did not respond to one of them,
    /// the waiting requests fail too, without waiting for a timeout each.
    ///
    /// # Errors
    /// The error of `ask`, or [`AgentError::Silent`] if an earlier request got no response.
    pub fn take<T>(&self, ask: impl FnOnce() -> Result<T, AgentError>) -> Result<T, AgentError> {
        self.take_behind(self.silences.load(Ordering::Relaxed), ask)
    }

    /// As [`ExecQueue::take`], for a caller that came after `before` requests without a response.
    fn take_behind<T>(
        &self,
        before: u64,
        ask: impl FnOnce() -> Result<T, AgentError>,
    ) -> Result<T, AgentError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.silences.load(Ordering::Relaxed) != before {
            let text = "it did not respond to the previous request".to_owned();
            return Err(AgentError::Silent { call: "ExecProcess", text });
        }
        let answer = ask();
        if matches!(answer, Err(AgentError::Silent { .. })) {
            self.silences.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waited_behind_a_silence_fails_with_it_and_who_comes_later_asks() {
        let queue = ExecQueue::default();
        let silent = || Err(AgentError::Silent { call: "ExecProcess", text: "timed out".to_owned() });
        assert!(queue.take::<()>(silent).is_err());
        let behind = queue.take_behind(0, || -> Result<(), _> { panic!("it must not ask") });
        assert!(matches!(behind, Err(AgentError::Silent { .. })));
        assert_eq!(queue.take(|| Ok(1)).unwrap(), 1);
    }

    #[test]
    fn a_refusal_concerns_nobody_else() {
        let queue = ExecQueue::default();
        let refusal =
            AgentError::Refused { code: ttrpc::Code::NOT_FOUND, message: String::new(), command: None };
        assert!(queue.take::<()>(|| Err(refusal)).is_err());
        assert_eq!(queue.take_behind(0, || Ok(1)).unwrap(), 1);
    }
}
