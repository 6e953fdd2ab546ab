//! The VMM's side of the control socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use pouch_vmm_api::config::NetworkConfig;
use pouch_vmm_api::control::{Answer, Command, ControlSocket, Message, Request};
use pouch_vmm_api::exit::ExitReason;
use vmm_sys_util::epoll::EventSet;

use crate::vm::Vm;
use pouch_errors::chain;

/// Answers the host's requests on the event loop.
pub struct ControlServer {
    socket: Arc<ControlSocket>,
    vm: Arc<Vm>,
}

impl ControlServer {
    /// Serves `vm` on `socket`, which must not block.
    pub fn new(socket: Arc<ControlSocket>, vm: Arc<Vm>) -> Self {
        ControlServer { socket, vm }
    }

    fn handle(&self, Request { id, command }: Request, fds: Vec<OwnedFd>) {
        let done = match command {
            Command::PlugNetwork(config) => match self.plug_network(&config, fds) {
                Ok(device) => Answer::Plugged { device },
                Err(error) => return answer(&self.socket, &Message::Failed { id, error }),
            },
            Command::Metrics => Answer::Metrics(self.vm.metrics()),
            Command::Stop => return self.vm.exit().end(ExitReason::Stopped),
            Command::Connect { port, timeout_ms } => return self.connect(id, port, timeout_ms),
        };
        answer(&self.socket, &Message::Answer { id, answer: done });
    }

    fn plug_network(&self, config: &NetworkConfig, fds: Vec<OwnedFd>) -> Result<u32, String> {
        config.validate().map_err(|error| error.to_string())?;
        let mut fds = fds.into_iter();
        let tap = fds.next().ok_or("the request has no tap device")?;
        self.vm.plug_network(tap, fds.next(), config).map_err(|error| chain(&error))
    }

    fn connect(&self, id: u64, port: u32, timeout_ms: u32) {
        let socket = self.socket.clone();
        self.vm.connect(port, timeout_ms, move |result| match result {
            Ok(stream) => {
                let message = Message::Answer { id, answer: Answer::Connected };
                if let Err(error) = socket.send(&message, &[stream.as_fd()]) {
                    crate::log_line!("a connection could not be passed to the host: {error}");
                }
            }
            Err(error) => answer(&socket, &Message::Failed { id, error: error.to_string() }),
        });
    }
}

/// Sends an answer. If the host does not read, answers are lost, but the VM continues.
fn answer(socket: &ControlSocket, message: &Message) {
    if let Err(error) = socket.send(message, &[]) {
        crate::log_line!("the response could not be sent to the host: {error}");
    }
}

impl MutEventSubscriber for ControlServer {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        match self.socket.receive::<Request>() {
            Ok(Some((request, fds))) => self.handle(request, fds),
            // The host's side has ended, so the VM is ended too.
            Ok(None) => self.vm.exit().end(ExitReason::Stopped),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.vm.exit().end(ExitReason::Stopped);
            }
            Err(error) => crate::log_line!("malformed control request: {error}"),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.socket.as_raw_fd(), EventSet::IN)) {
            let message = format!("the control socket cannot be watched: {error}");
            self.vm.exit().end(ExitReason::InternalError { message });
        }
    }
}
