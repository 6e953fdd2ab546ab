//! The VMM process, from its inherited descriptors to the end of its VM.

use std::any::Any;
use std::fs::File;
use std::io::{self, Read};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};
use pouch_vmm_api::config::{ConfigError, VmConfig};
use pouch_vmm_api::control::{ControlSocket, Message};
use pouch_vmm_api::exit::ExitReason;
use pouch_vmm_api::inherited::Inherited;
use vmm_sys_util::epoll::EventSet;

use crate::builder::{self, BootError, Files};
use crate::control::ControlServer;
use crate::devices::virtio::fs::{ShareRoot, files_kept};
use crate::event_loop::{EventLoop, EventLoopError};
use crate::exit_signal::ExitSignal;
use crate::jail::seccomp::{self, ThreadKind};
use crate::jail::{self, ConfineError};
use crate::vm::Vm;
use pouch_errors::chain;

/// The inode table also has files in use, and each open file needs another descriptor.
const DESCRIPTORS_FOR_EACH_FILE: u64 = 8;

/// The VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A descriptor of the command line is not there.
    #[error("the descriptor {number} for {what} was not inherited")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// What it is for.
        what: &'static str,
    },
    /// The description could not be read.
    #[error("the VM description could not be read")]
    Read(#[source] io::Error),
    /// The description is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process could not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The event loop could not be created.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// The control socket or the descriptor for the VM's end could not be prepared.
    #[error("a descriptor of the VMM could not be prepared")]
    Prepare(#[source] io::Error),
    /// The VM could not be built.
    #[error(transparent)]
    Boot(#[from] BootError),
}

/// What the process was started with.
pub struct Start {
    /// The descriptors that it inherited.
    pub inherited: Inherited,
    /// The number of the description's.
    pub config: RawFd,
    /// The number of the control socket's.
    pub control: RawFd,
    /// Whether to install seccomp filters.
    pub filter: bool,
}

impl Start {
    /// Runs the VM of a process that is in its namespaces already, to its end, and tells the host the reason.
    /// `built` is called when the process is confined and the VM built, before the guest runs.
    ///
    /// # Errors
    /// [`StartError`] if the VM could not be started.
    pub fn run(mut self, built: impl FnOnce(&Arc<Vm>)) -> Result<ExitReason, StartError> {
        let control = self.claim(self.control, "the control socket")?;
        let control = Arc::new(ControlSocket::from_fd(control.into()));
        let exit = Arc::new(ExitSignal::new().map_err(StartError::Prepare)?);
        end_on_panic(&exit);
        // The hook has recorded a panic of this thread; the state that it leaves is not used again.
        let result = panic::catch_unwind(AssertUnwindSafe(|| self.serve(&control, &exit, built)));
        let reason = match &result {
            Ok(Ok(reason)) => reason.clone(),
            Ok(Err(error)) => ExitReason::InternalError { message: chain(error) },
            Err(payload) => exit.reason().unwrap_or_else(|| panicked(&**payload)),
        };
        // If the host's side has ended, the error does not matter; otherwise the exit status reports it too.
        let _ = control.send(&Message::Exited(reason.clone()), &[]);
        match result {
            Ok(Err(error)) => Err(error),
            _ => Ok(reason),
        }
    }

    fn claim(&mut self, number: RawFd, what: &'static str) -> Result<File, StartError> {
        let claimed = self.inherited.claim(number);
        claimed.map(File::from).map_err(|_| StartError::Descriptor { number, what })
    }

    fn serve(
        &mut self,
        control: &Arc<ControlSocket>,
        exit: &Arc<ExitSignal>,
        built: impl FnOnce(&Arc<Vm>),
    ) -> Result<ExitReason, StartError> {
        let (vm, event_loop) = self.boot(exit)?;
        // No destructors: the vCPU threads use the VM until the process ends.
        let (vm, mut event_loop) = (ManuallyDrop::new(vm), ManuallyDrop::new(event_loop));
        control.set_nonblocking().map_err(StartError::Prepare)?;
        event_loop.add(Arc::new(Mutex::new(ControlServer::new(control.clone(), Arc::clone(&vm)))));
        event_loop.add(Arc::new(Mutex::new(ExitEvents(exit.clone()))));
        built(&vm);
        if self.filter {
            ThreadKind::Main.enter();
        }
        vm.resume();
        loop {
            if let Some(reason) = exit.reason() {
                return Ok(reason);
            }
            event_loop.turn()?;
        }
    }

    /// Claims the descriptors of the description, confines the process, and builds the VM.
    fn boot(&mut self, exit: &Arc<ExitSignal>) -> Result<(Arc<Vm>, EventLoop), StartError> {
        let mut text = String::new();
        let mut file = self.claim(self.config, "the description")?;
        file.read_to_string(&mut text).map_err(StartError::Read)?;
        drop(file);
        let config = VmConfig::from_json(&text)?;
        let files = Files::open(&config, &mut self.inherited)?;
        // Close descriptors that the description does not name.
        self.inherited = Inherited::default();
        jail::replace_proc()?;
        jail::allocator::limit_heaps();
        let descriptors = DESCRIPTORS_FOR_EACH_FILE * files_kept(config.memory_mib) as u64;
        jail::confine(config.share.as_ref().map(|share| share.path.as_path()), descriptors)?;
        // After the confinement: no directory that was opened before it may stay open.
        let share = config.share.as_ref().map(|_| ShareRoot::new(config.memory_mib));
        if !self.filter {
            seccomp::disable();
        }
        let mut event_loop = EventLoop::new()?;
        let vm = builder::boot(&config, files, share, exit.clone(), &mut event_loop)?;
        Ok((vm, event_loop))
    }
}

/// Ends the VM when any thread panics: a guest whose disk or vCPU no longer answers would hang.
fn end_on_panic(exit: &Arc<ExitSignal>) {
    let exit = exit.clone();
    panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let place = info.location().map(|location| format!(" at {location}")).unwrap_or_default();
        let text = panic_text(info.payload());
        let message = format!("thread {} panicked{place}: {text}", thread.name().unwrap_or("without a name"));
        crate::log_line!("{message}");
        exit.end(ExitReason::InternalError { message });
    }));
}

fn panic_text(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn panicked(payload: &dyn Any) -> ExitReason {
    ExitReason::InternalError { message: format!("a thread panicked: {}", panic_text(payload)) }
}

/// Wakes the event loop when the VM has ended.
struct ExitEvents(Arc<ExitSignal>);

impl MutEventSubscriber for ExitEvents {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.0.as_raw_fd(), EventSet::IN)) {
            self.0.end(ExitReason::InternalError { message: error.to_string() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hook is the process's, so there is one test of it; nextest gives it a process of its own.
    #[test]
    fn a_thread_that_panics_ends_the_vm_with_a_reason() {
        let before = panic::take_hook();
        let exit = Arc::new(ExitSignal::new().unwrap());
        end_on_panic(&exit);
        let thread = std::thread::Builder::new().name("vcpu3".to_owned());
        let result = thread.spawn(|| panic!("bad {}", "register")).unwrap().join();
        panic::set_hook(before);
        assert!(result.is_err());
        let Some(ExitReason::InternalError { message }) = exit.reason() else {
            panic!("{:?}", exit.reason())
        };
        assert!(message.starts_with("thread vcpu3 panicked at "), "{message}");
        assert!(message.ends_with(": bad register"), "{message}");
    }

    #[test]
    fn a_descriptor_that_was_not_inherited_is_named() {
        let start = Start { inherited: Inherited::default(), config: 3, control: 4, filter: true };
        let error = start.run(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "the descriptor 4 for the control socket was not inherited");
    }
}
