//! The VMM's side of the control socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use pouch_vmm_api::config::{DiskConfig, NetworkConfig};
use pouch_vmm_api::control::{Answer, Command, ControlSocket, Message, Request};
use pouch_vmm_api::exit::ExitReason;
use vmm_sys_util::epoll::EventSet;

use crate::attach::Unplugging;
use crate::vm::Vm;
use pouch_errors::chain;

/// Answers the host's requests on the event loop.
pub struct ControlServer {
    socket: Arc<ControlSocket>,
    vm: Arc<Vm>,
    /// The disks whose threads are ending, with the number of the request that waits for it.
    unplugging: Vec<(u64, Unplugging)>,
}

impl ControlServer {
    /// Serves `vm` on `socket`, which must not block.
    pub fn new(socket: Arc<ControlSocket>, vm: Arc<Vm>) -> Self {
        ControlServer { socket, vm, unplugging: Vec::new() }
    }

    fn handle(&mut self, Request { id, command }: Request, fds: Vec<OwnedFd>, ops: &mut EventOps<'_>) {
        let plugged = |result: Result<u32, String>| result.map(|device| Answer::Plugged { device });
        let done = match command {
            Command::PlugNetwork(config) => plugged(self.plug_network(&config, fds)),
            Command::PlugDisk(config) => plugged(self.plug_disk(&config, fds)),
            Command::UnplugDisk { device } => match self.unplug_disk(id, device, ops) {
                // The answer comes when the disk's thread has ended.
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Command::Metrics => Ok(Answer::Metrics(self.vm.metrics())),
            Command::Stop => return self.vm.exit().end(ExitReason::Stopped),
            Command::Connect { port, timeout_ms } => return self.connect(id, port, timeout_ms),
        };
        let message = match done {
            Ok(done) => Message::Answer { id, answer: done },
            Err(error) => Message::Failed { id, error },
        };
        answer(&self.socket, &message);
    }

    fn plug_disk(&self, config: &DiskConfig, fds: Vec<OwnedFd>) -> Result<u32, String> {
        config.validate().map_err(|error| error.to_string())?;
        let file = fds.into_iter().next().ok_or("the request has no disk")?;
        self.vm.plug_disk(file, config).map_err(|error| chain(&error))
    }

    fn unplug_disk(&mut self, id: u64, device: u32, ops: &mut EventOps<'_>) -> Result<(), String> {
        let unplugging = self.vm.unplug_disk(device).map_err(|error| chain(&error))?;
        ops.add(Events::new(&unplugging.ended, EventSet::IN))
            .map_err(|error| format!("the end of the disk's thread cannot be watched: {error}"))?;
        self.unplugging.push((id, unplugging));
        Ok(())
    }

    /// The thread of a disk has ended, as a descriptor tells.
    fn unplugged(&mut self, fd: RawFd, ops: &mut EventOps<'_>) {
        let ended = self.unplugging.iter().position(|(_, disk)| disk.ended.as_raw_fd() == fd);
        let Some(index) = ended else { return };
        let (id, disk) = self.unplugging.swap_remove(index);
        if let Err(error) = ops.remove(Events::empty(&disk.ended)) {
            crate::log_line!("the end of a disk's thread is still watched: {error}");
        }
        self.vm.release_disk(disk);
        answer(&self.socket, &Message::Answer { id, answer: Answer::Unplugged });
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
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() != self.socket.as_raw_fd() {
            return self.unplugged(events.fd(), ops);
        }
        match self.socket.receive::<Request>() {
            Ok(Some((request, fds))) => self.handle(request, fds, ops),
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
