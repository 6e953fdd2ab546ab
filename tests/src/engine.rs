//! Container engines, used through their command lines `docker` and `podman`.
//!
//! A test of an engine is a function that takes an [`Engine`]. [`engine_tests!`](crate::engine_tests) makes a
//! test of it for each engine that supports what it tests.

use std::process::Child;
use std::time::Duration;

use crate::bundle::unique_id;
use crate::terminal::Terminal;
use crate::{Invocation, Leftovers, Output, eventually_every, runtime};

/// The pause of [`eventually`].
const PAUSE: Duration = Duration::from_millis(500);

/// Waits until `condition` holds, which asks an engine: each look starts a large program.
///
/// # Panics
/// As [`crate::eventually`].
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_every(PAUSE, what, condition);
}

/// A container engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Docker: a daemon, which starts containers through containerd and its runc shim.
    Docker,
    /// The next Docker, whose daemon attaches networks itself, between create and start. It has a network
    /// namespace of its own, which is the test's too.
    Docker28,
    /// A Docker daemon whose containers have a user namespace (`userns-remap`), with a network namespace as above.
    DockerRemapped,
    /// Podman: no daemon; conmon watches a container.
    Podman,
}

/// The program of the testbed that starts and stops daemons.
pub const DAEMONS: &str = "/run/testbed/engines";

/// Makes tests of functions that take an [`Engine`]. A test's name is the engine's and the function's.
///
/// Tests of `both` run under Docker and Podman. Those of `both_long` are about what depends little on the engine: under
/// Podman they run in nextest's profile `long` only (`.config/nextest.toml`), as do those of `docker_long`,
/// `docker_28_long` and `podman_long`.
#[macro_export]
macro_rules! engine_tests {
    (
        $(both: $($both:ident),+;)? $(both_long: $($both_long:ident),+;)? $(docker: $($docker:ident),+;)?
        $(podman: $($podman:ident),+;)? $(docker_28: $($next:ident),+;)? $(docker_remapped: $($remapped:ident),+;)?
        $(docker_long: $($docker_long:ident),+;)? $(docker_28_long: $($next_long:ident),+;)?
        $(podman_long: $($podman_long:ident),+;)?
    ) => {
        $crate::engine_tests!(@module docker, Docker, $($($both,)+)? $($($both_long,)+)? $($($docker,)+)?);
        $crate::engine_tests!(@module podman, Podman, $($($both,)+)? $($($podman,)+)?);
        $crate::engine_tests!(@module podman_long, Podman, $($($both_long,)+)? $($($podman_long,)+)?);
        $crate::engine_tests!(@module docker_28, Docker28, $($($next,)+)?);
        $crate::engine_tests!(@module docker_remapped, DockerRemapped, $($($remapped,)+)?);
        $crate::engine_tests!(@module docker_long, Docker, $($($docker_long,)+)?);
        $crate::engine_tests!(@module docker_28_long, Docker28, $($($next_long,)+)?);
    };
    (@module $name:ident, $engine:ident, $($test:ident,)*) => {
        mod $name {
            $(#[test] fn $test() {
                $crate::engine::check($crate::Engine::$engine, super::$test);
            })*
        }
    };
}

/// Runs a test of an engine; whatever it is about, nothing of its containers may be left behind.
#[track_caller]
pub fn check(engine: Engine, test: impl FnOnce(Engine)) {
    engine.prepare();
    let picture = Leftovers::of_containers();
    test(engine);
    picture.check();
}

impl Engine {
    /// Its program.
    pub fn program(self) -> &'static str {
        match self {
            Engine::Docker | Engine::DockerRemapped => "docker",
            Engine::Docker28 => "/opt/docker-28/bin/docker",
            Engine::Podman => "podman",
        }
    }

    /// The engine with these arguments.
    pub fn command(self, arguments: &[&str]) -> Invocation {
        let invocation = Invocation::of(self.program(), arguments);
        match self.other_daemon() {
            Some((name, _)) => invocation.env("DOCKER_HOST", format!("unix:///run/{name}/docker.sock")),
            None => invocation,
        }
    }

    /// The name of a daemon that is started by who needs it, and the verb of [`DAEMONS`] that starts it.
    fn other_daemon(self) -> Option<(&'static str, &'static str)> {
        match self {
            Engine::Docker28 => Some(("docker-28", "start-28")),
            Engine::DockerRemapped => Some(("docker-remapped", "start-remapped")),
            Engine::Docker | Engine::Podman => None,
        }
    }

    /// Whether this is Docker.
    pub fn is_docker(self) -> bool {
        self != Engine::Podman
    }

    /// Sees to it that the engine can be used by this thread and those that it starts.
    fn prepare(self) {
        if let Some((name, start)) = self.other_daemon() {
            Invocation::of(DAEMONS, [start]).leaves_something_behind().run().ok();
            let namespace = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        }
    }

    /// `run` or `create` with the runtime that is tested.
    pub fn with_runtime(self, verb: &str, options: &[&str], image: &str, arguments: &[&str]) -> Invocation {
        self.with_runtime_of(&runtime(), verb, options, image, arguments)
    }

    /// The same with any runtime, for a comparison.
    pub fn with_runtime_of(
        self,
        runtime: &str,
        verb: &str,
        options: &[&str],
        image: &str,
        arguments: &[&str],
    ) -> Invocation {
        let image = format!("pouch-test/{image}");
        let mut all = match self {
            Engine::Podman => vec!["--runtime", runtime, verb],
            _ => vec![verb, "--runtime", runtime],
        };
        all.extend(options);
        all.push(&image);
        all.extend(arguments);
        self.command(&all)
    }

    /// Runs a container to its end, and lets the engine remove it.
    pub fn run(self, options: &[&str], image: &str, arguments: &[&str]) -> Output {
        self.with_runtime("run", &[&["--rm"], options].concat(), image, arguments).run()
    }

    /// Runs a shell script in a container of the debian image.
    pub fn sh(self, options: &[&str], script: &str) -> Output {
        self.run(options, "debian", &["/bin/sh", "-c", script])
    }

    /// Creates a container.
    #[track_caller]
    pub fn create(self, options: &[&str], image: &str, arguments: &[&str]) -> EngineContainer {
        let name = EngineContainer { engine: self, name: unique_id() };
        let all = [&["--name", &name.name], options].concat();
        self.with_runtime("create", &all, image, arguments).run().ok();
        name
    }

    /// Starts a container in the background.
    #[track_caller]
    pub fn start(self, options: &[&str], image: &str, arguments: &[&str]) -> EngineContainer {
        let name = EngineContainer { engine: self, name: unique_id() };
        let all = [&["--detach", "--name", &name.name], options].concat();
        self.with_runtime("run", &all, image, arguments).run().ok();
        name
    }

    /// Starts a container of the debian image that runs a shell script.
    #[track_caller]
    pub fn start_sh(self, options: &[&str], script: &str) -> EngineContainer {
        self.start(options, "debian", &["/bin/sh", "-c", script])
    }

    /// Starts a container of the debian image that does nothing until it is told to end.
    #[track_caller]
    pub fn start_idle(self, options: &[&str]) -> EngineContainer {
        // As the first process of its namespace it has no signal's default action.
        self.start_sh(options, "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done")
    }

    /// Starts `run` with a terminal of this size, on which one can type.
    pub fn run_on_terminal(
        self,
        options: &[&str],
        arguments: &[&str],
        size: (u16, u16),
    ) -> (Terminal, Child) {
        let all = [&["--rm", "--interactive", "--tty"], options].concat();
        let command = self.with_runtime("run", &all, "debian", arguments).into_command();
        Terminal::spawn(command, size.0, size.1)
    }

    /// Makes a network.
    #[track_caller]
    pub fn network(self, options: &[&str]) -> Thing {
        self.thing("network", options)
    }

    /// Makes a volume.
    #[track_caller]
    pub fn volume(self) -> Thing {
        self.volume_with(&[])
    }

    /// Makes a volume with these options.
    #[track_caller]
    pub fn volume_with(self, options: &[&str]) -> Thing {
        self.thing("volume", options)
    }

    #[track_caller]
    fn thing(self, kind: &'static str, options: &[&str]) -> Thing {
        let thing = Thing { engine: self, kind, name: unique_id() };
        self.command(&[&[kind, "create"], options, &[&thing.name]].concat()).run().ok();
        thing
    }
}

/// A container of an engine. It is removed by force when it is dropped.
pub struct EngineContainer {
    /// Its engine.
    pub engine: Engine,
    /// Its name.
    pub name: String,
}

impl EngineContainer {
    /// A container that something else makes, to be removed in the end.
    pub fn named(engine: Engine, name: &str) -> Self {
        EngineContainer { engine, name: name.to_owned() }
    }

    /// A command of the engine whose last argument is the container.
    pub fn command(&self, arguments: &[&str]) -> Invocation {
        self.engine.command(&[arguments, &[&self.name]].concat())
    }

    /// Runs such a command, which must succeed; its output.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.command(arguments).run().ok()
    }

    /// What `inspect` says; `format` is a Go template.
    #[track_caller]
    pub fn inspect(&self, format: &str) -> String {
        self.ok(&["inspect", "--type", "container", "--format", format])
    }

    /// Its status: `created`, `running`, `paused`, `exited` …
    #[track_caller]
    pub fn status(&self) -> String {
        self.inspect("{{.State.Status}}")
    }

    /// The number of its process on the host.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.inspect("{{.State.Pid}}").parse().unwrap()
    }

    /// Its address in a network.
    #[track_caller]
    pub fn address(&self, network: &str) -> String {
        self.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}"))
    }

    /// Waits until `inspect` says this.
    #[track_caller]
    pub fn await_inspect(&self, format: &str, wanted: &str) {
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&format!("{format} is {wanted}"), || {
                last = self.inspect(format);
                last == wanted
            });
        }));
        assert!(found.is_ok(), "{format} should become {wanted:?} and is {last:?}");
    }

    /// Waits for its end; its exit status.
    #[track_caller]
    pub fn wait(&self) -> i32 {
        self.ok(&["wait"]).parse().unwrap()
    }

    /// What it wrote, standard output and error together.
    pub fn logs(&self) -> String {
        let output = self.command(&["logs"]).run();
        output.text() + &output.errors()
    }

    /// Waits until it has written this.
    #[track_caller]
    pub fn await_logs(&self, text: &str) {
        eventually(&format!("{} writes {text:?}", self.name), || self.logs().contains(text));
    }

    /// An invocation of `exec`.
    pub fn exec_invocation(&self, options: &[&str], arguments: &[&str]) -> Invocation {
        self.engine.command(&[&["exec"], options, &[&self.name], arguments].concat())
    }

    /// Executes a command in it.
    pub fn exec(&self, options: &[&str], arguments: &[&str]) -> Output {
        self.exec_invocation(options, arguments).run()
    }

    /// Executes a shell script in it, which must succeed; its output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.exec(&[], &["/bin/sh", "-c", script]).ok()
    }

    /// Makes the file `/go`, for which its first process waits. That process can end before the command does, and
    /// ends the command with it, so the command's status says nothing.
    pub fn go(&self) {
        self.exec(&[], &["touch", "/go"]);
    }
}

impl Drop for EngineContainer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = self.command(&["inspect", "--format", "{{json .State}}"]).run();
            eprintln!("--- {}: {}\n--- its logs:\n{}", self.name, state.text(), self.logs());
        }
        // Podman would ask it to end first, and wait for that.
        let now: &[&str] = if self.engine.is_docker() { &[] } else { &["--time", "0"] };
        let _ = self.command(&[&["rm", "--force", "--volumes"], now].concat()).run();
    }
}

/// A network or a volume of an engine. It is removed when it is dropped.
pub struct Thing {
    engine: Engine,
    kind: &'static str,
    /// Its name.
    pub name: String,
}

impl Thing {
    /// What `inspect` says; `format` is a Go template.
    #[track_caller]
    pub fn inspect(&self, format: &str) -> String {
        self.engine.command(&[self.kind, "inspect", "--format", format, &self.name]).run().ok()
    }
}

impl Drop for Thing {
    fn drop(&mut self) {
        let output = self.engine.command(&[self.kind, "rm", &self.name]).run();
        if output.status != 0 && !std::thread::panicking() {
            panic!("a {} cannot be removed: {output}", self.kind);
        }
    }
}
