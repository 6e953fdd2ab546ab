//! The callback with which libcontainer starts the container's first process. Namespaces, mounts and user are
//! set up by then.

use std::collections::HashMap;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;

use super::program::Program;
use super::report::Reporter;
use super::{directory, mounts};

/// Starts the program of a container's first process.
#[derive(Clone)]
pub struct GuestExecutor {
    /// The program.
    pub program: Program,
    /// What the container cannot write.
    pub readonly_paths: Vec<String>,
    /// To the agent.
    pub reporter: Reporter,
}

impl Executor for GuestExecutor {
    /// Does what libcontainer does differently from runc, and checks that the program exists.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        mounts::protect(&self.readonly_paths)
            .and_then(|()| directory::make_and_enter(self.program.process.cwd()))
            .and_then(|()| self.program.check())
            .map_err(|message| {
                self.reporter.send(&message);
                ExecutorValidationError::ArgValidationError("the command cannot be executed".to_owned())
            })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment goes straight to execve, in its own order.
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        self.reporter.send(&self.program.execute());
        Err(ExecutorError::Other("the command cannot be executed".to_owned()))
    }
}
