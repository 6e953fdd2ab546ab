//! The actions with which containerd calls the shim, and the server that `start` leaves behind
//! (containerd, docs/runtime-v2.md).

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use containerd_shim::api::DeleteResponse;
use containerd_shim::bootstrap::BootstrapParams;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::shim::shim_ttrpc::create_task;
use containerd_shim::protos::ttrpc::Server;
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use containerd_shim::publisher::RemotePublisher;
use containerd_shim::{Config, ExitSignal, Flags, Shim, StartOpts, logger, spawn};
use containerd_shim_protos::sandbox_sync::create_sandbox;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::events::{Events, timestamp};
use super::pod::{self, Part};
use super::service::Service;
use super::{RUNTIME, options as runtime_options, rootfs, state_root};
use crate::container::bundle::CONFIG_FILE;
use crate::container::{ContainerDir, ContainerId, IdError, features};
use crate::host::delete;
use crate::logging::Log;
use pouch_errors::chain;

/// The name of the Task service before containerd 2.0, which later ones still accept.
const TASK_V2: &str = "containerd.task.v2.Task";
/// The name since containerd 2.0, which the library has. The messages are the same.
const TASK_V3: &str = "containerd.task.v3.Task";
/// The type of the features document (containerd, `pkg/oci` and `typeurl`).
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// Bytes of the longest message that is read from containerd.
const MAX_INPUT: u64 = 10 << 20;
/// The environment variable with the address of containerd's service for events.
const EVENTS_ADDRESS: &str = "TTRPC_ADDRESS";
/// The file in the bundle with the address of the shim's socket.
const ADDRESS: &str = "address";
/// How long the last response may take.
const LAST_RESPONSE: Duration = Duration::from_secs(2);
/// The exit status of a container whose shim was killed, as for a process that gets SIGKILL.
const KILLED: u32 = 137;

/// An action failed.
#[derive(Debug, thiserror::Error)]
enum ActionError {
    /// The library.
    #[error(transparent)]
    Shim(#[from] containerd_shim::Error),
    /// A file or socket.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
    /// The server.
    #[error("the socket {0} could not be served")]
    Serve(String, #[source] containerd_shim::protos::ttrpc::Error),
    /// The reply could not be written.
    #[error("the reply to containerd could not be written")]
    Reply(#[from] containerd_shim::protos::protobuf::Error),
    /// The server.
    #[error("the server of the shim ended early; see containerd's log")]
    Ended,
    /// A flag.
    #[error("the flag -{0} is missing")]
    Flag(&'static str),
    /// The ID of a container.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The namespace.
    #[error("the flag -namespace cannot be used")]
    Namespace(#[source] IdError),
    /// A container could not be removed.
    #[error(transparent)]
    Delete(#[from] delete::DeleteError),
}

/// Performs the action that the command line names; returns the exit status.
pub fn main() -> u8 {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let result = containerd_shim::parse(&arguments).map_err(ActionError::from).and_then(|flags| act(&flags));
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("containerd-shim-pouch-vm-v2: error: {}", chain(&error));
            1
        }
    }
}

fn act(flags: &Flags) -> Result<(), ActionError> {
    if flags.version {
        println!("containerd-shim-pouch-vm-v2:\n  Version:  {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        containerd_shim::run::<Actions>(RUNTIME, Some(config()));
        return Ok(());
    }
    if flags.namespace.is_empty() {
        return Err(ActionError::Flag("namespace"));
    }
    if flags.id.is_empty() {
        return Err(ActionError::Flag("id"));
    }
    // Both name directories.
    flags.namespace.parse::<ContainerId>().map_err(ActionError::Namespace)?;
    flags.id.parse::<ContainerId>()?;
    match flags.action.as_str() {
        "start" => start(flags),
        "delete" => remove(flags),
        _ => serve(flags),
    }
}

fn config() -> Config {
    // Children are waited for where they are started, and those of a killed child are not the shim's.
    Config { no_reaper: true, no_sub_reaper: true, ..Config::default() }
}

/// Starts the server, and prints its address: as containerd's bootstrap protocol has it (2.3), or as a line, which
/// every containerd takes for a Task service of version 2. Earlier versions than 2.0 know no other.
fn start(flags: &Flags) -> Result<(), ActionError> {
    let input = take_input().map_err(|error| ActionError::Io("standard input could not be read", error))?;
    if is_bootstrap(&input, flags) {
        containerd_shim::run::<Actions>(RUNTIME, Some(config()));
        return Ok(());
    }
    // Of a type that is not known they are refused when they are used.
    keep_options(Any::parse_from_bytes(&input).ok().filter(|any| !any.type_url.is_empty()).as_ref())?;
    let address = start_server(StartOpts {
        id: flags.id.clone(),
        publish_binary: flags.publish_binary.clone(),
        address: flags.address.clone(),
        ttrpc_address: env::var(EVENTS_ADDRESS).unwrap_or_default(),
        namespace: flags.namespace.clone(),
        debug: flags.debug,
        ..StartOpts::default()
    })?;
    io::stdout()
        .write_all(address.as_bytes())
        .map_err(|error| ActionError::Io("the address could not be written", error))
}

/// Reads standard input, which can be read again then.
fn take_input() -> io::Result<Vec<u8>> {
    let stdin = io::stdin();
    if nix::unistd::isatty(stdin.as_fd()).unwrap_or(false) {
        return Ok(Vec::new());
    }
    let mut input = Vec::new();
    stdin.lock().take(MAX_INPUT).read_to_end(&mut input)?;
    let mut copy = File::from(memfd_create(c"containerd-input", MFdFlags::MFD_CLOEXEC)?);
    copy.write_all(&input)?;
    copy.rewind()?;
    nix::unistd::dup2_stdin(&copy)?;
    Ok(input)
}

/// Whether the input is the message of containerd's bootstrap protocol, rather than options of the runtime.
fn is_bootstrap(input: &[u8], flags: &Flags) -> bool {
    !input.is_empty()
        && BootstrapParams::parse_from_bytes(input)
            .is_ok_and(|params| params.instance_id == flags.id && params.namespace == flags.namespace)
}

/// Starts a server, or finds that of the container's pod.
fn start_server(options: StartOpts) -> Result<String, ActionError> {
    // containerd calls in the directory of the bundle.
    let group = match Part::of(Path::new(".")) {
        Part::Member(sandbox) => sandbox,
        Part::Alone | Part::Sandbox => options.id.clone(),
    };
    let existing = options.socket_address(&group);
    if group != options.id && UnixStream::connect(socket_path(&existing)).is_ok() {
        return written(existing);
    }
    let (pid, address) = spawn(options, &group, Vec::new())?;
    // It has ended, or listens. Its messages are in containerd's log.
    if !Path::new("/proc").join(pid.to_string()).join("exe").exists() {
        return Err(ActionError::Ended);
    }
    written(address)
}

/// Keeps the options of the runtime for a sandbox. Only its bundle has no specification.
fn keep_options(any: Option<&Any>) -> Result<(), ActionError> {
    match any {
        Some(any) if !Path::new(CONFIG_FILE).exists() => runtime_options::keep(Path::new("."), any)
            .map_err(|error| ActionError::Io("the runtime options could not be kept", error)),
        _ => Ok(()),
    }
}

/// Writes the address for containerd, which looks for it after its own restart.
fn written(address: String) -> Result<String, ActionError> {
    fs::write(ADDRESS, &address)
        .map_err(|error| ActionError::Io("the file address could not be written", error))?;
    Ok(address)
}

/// Removes what a shim that was killed left behind.
fn remove(flags: &Flags) -> Result<(), ActionError> {
    let root = state_root(&flags.namespace);
    let part = Part::of(Path::new("."));
    match &part {
        Part::Member(sandbox) => {
            pod::remove(&ContainerDir::new(&root, &sandbox.parse()?), &flags.id.parse()?)
        }
        Part::Alone | Part::Sandbox => {
            delete::delete(&ContainerDir::new(&root, &flags.id.parse()?), &Log::default(), true)?;
        }
    }
    rootfs::unmount(Path::new(&flags.bundle));
    // Its socket. containerd calls in the directory of the bundle.
    if !matches!(part, Part::Member(_))
        && let Ok(address) = fs::read_to_string(ADDRESS)
    {
        let _ = fs::remove_file(socket_path(&address));
    }
    let mut response = DeleteResponse::new();
    response.exit_status = KILLED;
    response.exited_at = Some(timestamp(SystemTime::now())).into();
    Ok(response.write_to_writer(&mut io::stdout())?)
}

/// The life of the server.
fn serve(flags: &Flags) -> Result<(), ActionError> {
    let path = socket_path(&flags.socket);
    if path.is_empty() {
        return Err(ActionError::Flag("socket"));
    }
    // Without the FIFO the shim works as well; only its messages are lost.
    let _ = logger::init(flags.debug, "info", &flags.namespace, &flags.id);
    let events = env::var(EVENTS_ADDRESS).unwrap_or_default();
    let events = Events::start(&flags.namespace, events)
        .map_err(|error| ActionError::Io("a thread could not be started", error))?;
    let exit = Arc::new(ExitSignal::default());
    let service = Arc::new(Service::new(flags, events.clone(), exit.clone()));
    let io = |what| move |error| ActionError::Io(what, error);
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent).map_err(io("the directory of the socket could not be created"))?;
    }
    let listener = listen(path).map_err(io("the socket could not be created"))?;
    let broken = |error| ActionError::Serve(path.to_owned(), error);
    let mut methods = create_task(service.clone());
    methods.extend(create_sandbox(service.clone()));
    let earlier = create_task(service).into_iter();
    methods.extend(earlier.map(|(path, method)| (path.replace(TASK_V3, TASK_V2), method)));
    let mut server = Server::new().add_listener(listener.into_raw_fd()).map_err(broken)?;
    server = server.register_service(methods);
    server.start().map_err(broken)?;
    // `start` waits for the end of this stream.
    nix::unistd::dup2_stdout(io::stderr())
        .map_err(|errno| io("standard output could not be closed")(errno.into()))?;
    exit.wait();
    events.finish();
    // The response to the last request goes out first. Other requests may never be answered.
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || {
        server.shutdown();
        let _ = sender.send(());
    });
    let _ = ended.recv_timeout(LAST_RESPONSE);
    let _ = fs::remove_file(path);
    Ok(())
}

fn socket_path(address: &str) -> &str {
    address.strip_prefix("unix://").unwrap_or(address)
}

/// Listens at `path`. A socket that a killed shim left is replaced.
fn listen(path: &str) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// What the library does for us: replies by the bootstrap protocol, and information about the runtime.
struct Actions;

impl Shim for Actions {
    type T = Service;

    fn new(_runtime: &str, _flags: &Flags, _config: &mut Config) -> Self {
        Actions
    }

    fn start_shim(&mut self, options: StartOpts) -> containerd_shim::Result<String> {
        let other = |error: ActionError| containerd_shim::Error::Other(chain(&error));
        // containerd passes other things here too.
        keep_options(options.extensions.iter().find(|any| runtime_options::is_known(any))).map_err(other)?;
        start_server(options).map_err(other)
    }

    fn delete_shim(&mut self) -> containerd_shim::Result<DeleteResponse> {
        Err(containerd_shim::Error::Unimplemented("delete".to_owned()))
    }

    fn wait(&mut self) {}

    fn create_task_service(&self, _publisher: RemotePublisher) -> Service {
        unreachable!("the server is started without the library")
    }

    fn runtime_info(runtime: &str, _options: Option<&Any>) -> containerd_shim::Result<RuntimeInfo> {
        let mut info = RuntimeInfo::new();
        info.name = runtime.to_owned();
        let mut version = RuntimeVersion::new();
        version.version = env!("CARGO_PKG_VERSION").to_owned();
        info.version = Some(version).into();
        let mut document = features::document();
        // containerd asks for pods, which have no user namespaces yet.
        if let Some(namespaces) = document["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|name| name != "user");
        }
        // As Go's typeurl encodes a type that is not of protobuf.
        let features =
            Any { type_url: FEATURES.to_owned(), value: document.to_string().into_bytes(), ..Any::default() };
        info.features = Some(features).into();
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags { id: "a".to_owned(), namespace: "n".to_owned(), ..Flags::default() }
    }

    #[test]
    fn options_of_the_runtime_are_no_bootstrap_message() {
        assert!(!is_bootstrap(b"", &flags()));
        let mut any = Any::new();
        any.type_url = "containerd.runc.v1.Options".to_owned();
        assert!(!is_bootstrap(&any.write_to_bytes().unwrap(), &flags()));
        let params =
            BootstrapParams { instance_id: "a".to_owned(), namespace: "n".to_owned(), ..Default::default() };
        let params = params.write_to_bytes().unwrap();
        assert!(is_bootstrap(&params, &flags()));
        assert!(!is_bootstrap(&params, &Flags { id: "b".to_owned(), ..flags() }));
    }
}
