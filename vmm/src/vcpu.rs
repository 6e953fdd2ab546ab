//! vCPUs: each is a thread that runs the guest until an exit to the VMM.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use pouch_vmm_api::exit::ExitReason;

use crate::bus::{Bus, lock};
use crate::exit_signal::ExitSignal;

/// How long a vCPU may take to react to a signal before it is sent again. A signal may arrive between the
/// check of the command and the entry into the guest.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// The command to the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Run,
    Pause,
}

/// The command to all vCPUs, and how many follow it already.
struct Shared {
    state: Mutex<(Command, usize)>,
    changed: Condvar,
}

/// All vCPUs of a VM.
pub struct Vcpus {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A vCPU's thread could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the thread of vCPU {index} could not be started")]
pub struct VcpuThreadError {
    index: usize,
    source: io::Error,
}

/// The two address spaces of device registers.
#[derive(Clone)]
pub struct Buses {
    /// Ports.
    pub ports: Arc<Bus>,
    /// Memory.
    pub mmio: Arc<Bus>,
}

impl Vcpus {
    /// Starts a thread for each of `vcpus`, paused. `enter` runs first on each thread, to confine
    /// it.
    ///
    /// # Errors
    /// [`VcpuThreadError`] if the host gives no thread.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        buses: &Buses,
        exit: &Arc<ExitSignal>,
        enter: impl Fn() + Clone + Send + 'static,
    ) -> Result<Self, VcpuThreadError> {
        register_kick_handler();
        let shared = Arc::new(Shared { state: Mutex::new((Command::Pause, 0)), changed: Condvar::new() });
        let mut threads = Vec::with_capacity(vcpus.len());
        for (index, fd) in vcpus.into_iter().enumerate() {
            let (shared, buses, exit, enter) = (shared.clone(), buses.clone(), exit.clone(), enter.clone());
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || {
                    enter();
                    let reason = run(fd, &shared, &buses);
                    exit.end(reason);
                })
                .map_err(|source| VcpuThreadError { index, source })?;
            threads.push(thread);
        }
        Ok(Vcpus { shared, threads })
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        lock(&self.shared.state).0 = Command::Run;
        self.shared.changed.notify_all();
    }

    /// Stops all vCPUs; when this returns, none runs guest code.
    pub fn pause(&self) {
        let mut state = lock(&self.shared.state);
        state.0 = Command::Pause;
        while state.1 < self.threads.iter().filter(|thread| !thread.is_finished()).count() {
            for thread in &self.threads {
                // SAFETY: the thread is joined only when `self` is dropped, so its handle is
                // valid; the signal has a handler.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
            }
            state = match self.shared.changed.wait_timeout(state, KICK_AGAIN) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// An empty handler: the signal only makes KVM_RUN return.
fn register_kick_handler() {
    extern "C" fn handler(_signal: libc::c_int) {}
    // SAFETY: an all-zero sigaction is valid; the handler touches nothing, so it may run at any
    // time.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut());
    }
}

/// Waits while the vCPUs are to be paused.
fn wait_to_run(fd: &VcpuFd, shared: &Shared) {
    let mut state = lock(&shared.state);
    if state.0 == Command::Run {
        return;
    }
    // Otherwise the guest's watchdogs take the pause for a hang. A guest that has not set up its clock yet
    // (EINVAL) has no watchdogs.
    let _ = fd.kvmclock_ctrl();
    state.1 += 1;
    shared.changed.notify_all();
    while state.0 == Command::Pause {
        state = match shared.changed.wait(state) {
            Ok(state) => state,
            Err(poisoned) => poisoned.into_inner(),
        };
    }
    state.1 -= 1;
}

/// Runs one vCPU until the VM ends.
fn run(mut fd: VcpuFd, shared: &Shared, buses: &Buses) -> ExitReason {
    loop {
        wait_to_run(&fd, shared);
        match fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => buses.ports.read(port.into(), data),
            Ok(VcpuExit::IoOut(port, data)) => buses.ports.write(port.into(), data),
            Ok(VcpuExit::MmioRead(address, data)) => buses.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => buses.mmio.write(address, data),
            Ok(VcpuExit::Shutdown) => return ExitReason::TripleFault,
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
            Ok(VcpuExit::SystemEvent(kind, _)) => return system_event(kind),
            Ok(VcpuExit::InternalError) => {
                let message = "KVM_EXIT_INTERNAL_ERROR: it cannot emulate what the guest did; /dev/kvm may \
                               be backed by a hypervisor without full virtualization"
                    .to_owned();
                return ExitReason::HypervisorError { message };
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                let message = format!("KVM_EXIT_FAIL_ENTRY: hardware reason {reason:#x} on CPU {cpu}");
                return ExitReason::HypervisorError { message };
            }
            Ok(other) => {
                return ExitReason::HypervisorError { message: format!("unexpected exit {other:?}") };
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return ExitReason::HypervisorError { message: format!("KVM_RUN: {error}") },
        }
    }
}

/// KVM_SYSTEM_EVENT_* of Documentation/virt/kvm/api.rst.
fn system_event(kind: u32) -> ExitReason {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => ExitReason::PowerOff,
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => ExitReason::Reset,
        kvm_bindings::KVM_SYSTEM_EVENT_CRASH => ExitReason::Panic { message: String::new() },
        other => ExitReason::HypervisorError { message: format!("unknown system event {other}") },
    }
}
