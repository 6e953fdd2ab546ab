//! The containers of a pod, which join its VM one by one.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use pouch_protocol::agent::BlockDevice;

use super::ending::{Ending, Exit};
use super::protocol::CreateRequest;
use crate::container::{Container, ContainerDir, Status, create};
use crate::failure::Failure;
use crate::sandbox::{GuestParts, Sandbox};
use crate::streams::{Ends, OutputRelay, STALL, start_relays};

/// Bytes of the longest specification, which the agent refuses anyway.
const MAX_DOCUMENT: u64 = 2 << 20;

/// A container of a pod.
pub struct Member {
    /// The container.
    pub container: Arc<Container>,
    /// The end of its process, after its output was passed on.
    pub ending: Ending,
}

/// The containers of a pod.
pub struct Members {
    sandbox: Arc<Sandbox>,
    /// The pod's own directory.
    dir: ContainerDir,
    /// None while one is being created.
    members: Mutex<BTreeMap<String, Option<Arc<Member>>>>,
}

impl Members {
    /// A pod without containers.
    pub fn new(sandbox: Arc<Sandbox>, dir: ContainerDir) -> Self {
        Members { sandbox, dir, members: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<Member>>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container with this ID.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, id: &str) -> Result<Arc<Member>, Failure> {
        let found = self.lock().get(id).cloned().flatten();
        found.ok_or_else(|| Failure::new(format!("container {id} does not exist")))
    }

    /// Creates a container. `fds` are its specification and the ends of its streams.
    ///
    /// # Errors
    /// [`Failure`] names what is wrong; nothing is left then.
    pub fn create(&self, request: CreateRequest, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let id = request.state.id.clone();
        // Under one lock, so that only one of two requests with the same ID creates it.
        match self.lock().entry(id.clone()) {
            Entry::Occupied(_) => return Err(Failure::new(format!("container {id} exists already"))),
            Entry::Vacant(free) => drop(free.insert(None)),
        }
        match self.make(request, fds) {
            Ok(member) => {
                self.lock().insert(id, Some(member));
                Ok(())
            }
            Err(failure) => {
                self.lock().remove(&id);
                Err(failure)
            }
        }
    }

    fn make(&self, request: CreateRequest, fds: Vec<OwnedFd>) -> Result<Arc<Member>, Failure> {
        let mut fds = fds.into_iter().map(File::from);
        let mut next = || fds.next().ok_or_else(|| Failure::new("a descriptor of the container is missing"));
        let document = read_document(next()?).map_err(Failure::of)?;
        let mut end = |null: bool| if null { Ok(None) } else { next().map(Some) };
        let null = request.null;
        let ends = if request.terminal {
            Ends::Terminal { input: end(null.stdin)?, output: end(null.stdout)?, console: None }
        } else {
            let (stdin, stdout, stderr) = (end(null.stdin)?, end(null.stdout)?, end(null.stderr)?);
            Ends::Streams { stdin, stdout, stderr }
        };
        let disks: Vec<OwnedFd> = fds.map(OwnedFd::from).collect();
        let id = request.state.id.parse().map_err(Failure::of)?;
        let dir = self.dir.of_member(&id);
        let devices =
            self.sandbox.add_disks(dir.id().as_str(), &request.disks, disks).map_err(Failure::of)?;
        let made = self.make_in_guest(&dir, request, document, devices, ends);
        if made.is_err() {
            self.sandbox.remove_disks(dir.id().as_str());
        }
        made
    }

    fn make_in_guest(
        &self,
        dir: &ContainerDir,
        request: CreateRequest,
        document: Vec<u8>,
        devices: Vec<BlockDevice>,
        ends: Ends,
    ) -> Result<Arc<Member>, Failure> {
        let mut state = request.state;
        state.status = Status::Created;
        let (vm, agent) = (&self.sandbox.vm, &self.sandbox.agent);
        let id = state.id.clone();
        let storages = create::submounts([&request.directory].into_iter().chain(&request.joint_directories));
        let parts = GuestParts { storages, pids: request.pids, devices };
        let guest = create::create(vm, agent, &id, document, parts, &ends)?;
        let started = start_relays(guest, ends).map_err(Failure::of).and_then(|outputs| {
            dir.note(&state).map_err(Failure::of)?;
            let container = Arc::new(Container::new(dir.clone(), self.sandbox.clone(), state));
            let member = Arc::new(Member { container, ending: Ending::default() });
            watch(member.clone(), outputs).map_err(Failure::of)?;
            Ok(member)
        });
        if started.is_err() {
            // The first error is reported.
            let _ = agent.delete(&id);
        }
        started
    }

    /// Removes a container whose process has ended, from the guest too. Its directory is the front end's.
    ///
    /// # Errors
    /// It has not ended, or the agent refuses.
    pub fn remove(&self, id: &str) -> Result<(), Failure> {
        let member = self.get(id)?;
        if member.ending.get().is_none() && member.container.status() != Status::Created {
            return Err(Failure::new(format!("container {id} has not ended")));
        }
        self.sandbox.agent.delete(id)?;
        self.sandbox.remove_disks(id);
        member.ending.set(Exit::killed());
        self.lock().remove(id);
        Ok(())
    }
}

fn read_document(mut file: File) -> io::Result<Vec<u8>> {
    let mut document = Vec::new();
    file.rewind()?;
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut document)?;
    if document.len() as u64 > MAX_DOCUMENT {
        return Err(io::Error::other("the specification is longer than 2 MiB"));
    }
    Ok(document)
}

/// Notes the end of a container's process when its output was passed on.
fn watch(member: Arc<Member>, outputs: Vec<OutputRelay>) -> io::Result<()> {
    thread::Builder::new().name("exit".to_owned()).stack_size(256 * 1024).spawn(move || {
        let exit = match member.container.wait("") {
            Ok(response) => {
                member.container.set_over();
                let killed = response.signal != 0;
                for (output, bytes) in outputs.iter().zip([response.stdout_bytes, response.stderr_bytes]) {
                    output.finish(bytes, || (killed || member.container.is_killed()).then_some(STALL));
                }
                let out_of_memory = response.oom_killed;
                Exit { out_of_memory, ..Exit::now(response.exit_status.min(255)) }
            }
            // The VM has ended, and everything in it.
            Err(_) => Exit::killed(),
        };
        if let Err(error) = member.container.stopped(i32::try_from(exit.status).ok(), None) {
            eprintln!("pouch-vm: error: {}", pouch_errors::chain(&error));
        }
        member.ending.set(exit);
    })?;
    Ok(())
}
