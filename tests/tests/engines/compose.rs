//! An application of several services, as docker-compose starts it: nginx, a web service in Python, redis and
//! postgres on one network, with names, volumes, health checks and a published port (compose/compose.yaml).

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pouch_tests::engine::eventually;
use pouch_tests::{Engine, HANG, Invocation, Output, bundle, engine_tests, has_vm, runtime};

engine_tests! {
    docker_long: an_application_of_four_services;
}

const FILES: [(&str, &str); 3] = [
    ("compose.yaml", include_str!("compose/compose.yaml")),
    ("nginx.conf", include_str!("compose/nginx.conf")),
    ("web.py", include_str!("compose/web.py")),
];
/// In the order in which they are restarted: what others stand on comes first.
const SERVICES: [&str; 4] = ["postgres", "redis", "web", "nginx"];
/// The published port.
const PORT: u16 = 8088;
/// Connections at once.
const CLIENTS: usize = 8;

/// The application. It is taken down when it is dropped.
struct Application {
    folder: tempfile::TempDir,
    project: String,
}

impl Application {
    fn start() -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        for (name, content) in FILES {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let application = Application { folder, project: bundle::unique_id() };
        application.compose(&["run", "--rm", "--no-TTY", "cluster"]).ok();
        application.compose(&["up", "--detach", "--wait"]).ok();
        application
    }

    fn compose(&self, arguments: &[&str]) -> Output {
        let all = [&["--project-name", &self.project, "--progress", "plain"], arguments].concat();
        Invocation::of("docker-compose", all)
            .current_dir(self.folder.path())
            .env("POUCH_RUNTIME", runtime())
            .env("PORT", PORT.to_string())
            .within(2 * HANG)
            .run()
    }

    fn container(&self, service: &str) -> String {
        format!("{}-{service}-1", self.project)
    }

    #[track_caller]
    fn inspect(&self, service: &str, format: &str) -> String {
        let container = self.container(service);
        Engine::Docker.command(&["inspect", "--format", format, &container]).run().ok()
    }

    #[track_caller]
    fn await_health(&self, service: &str) {
        eventually(&format!("{service} is healthy"), || {
            self.inspect(service, "{{.State.Status}} {{.State.Health.Status}}") == "running healthy"
        });
    }

    /// Names of containers, networks and volumes that belong to it.
    fn parts(&self) -> String {
        let label = format!("label=com.docker.compose.project={}", self.project);
        let mut found = String::new();
        for list in [&["ps", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
            let output = Engine::Docker.command(&[list, &["--quiet", "--filter", &label]].concat()).run();
            found += &output.ok();
        }
        found
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [&["ps", "--all"][..], &["logs", "--tail", "50"]] {
                eprintln!("--- {}", self.compose(arguments));
            }
        }
        let _ = self.compose(&["down", "--volumes", "--timeout", "1"]);
    }
}

/// A client with one connection to the published port.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect() -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", PORT))?;
        stream.set_read_timeout(Some(HANG))?;
        Ok(Client(BufReader::new(stream)))
    }

    /// The status and the content of the answer.
    fn ask(&mut self, method: &str, path: &str, content: &str) -> std::io::Result<(u16, String)> {
        let length = content.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: application\r\nContent-Length: {length}\r\n\r\n{content}"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("{line:?} is no status")))?;
        let mut length = 0;
        loop {
            let line = self.line()?.to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
        }
        let mut content = vec![0; length];
        self.0.read_exact(&mut content)?;
        Ok((status, String::from_utf8(content).map_err(std::io::Error::other)?))
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        // The end of the connection is no empty line.
        if !line.ends_with('\n') {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// What is kept under a key: with what a shell, SQL and JSON would take for their own.
fn value(key: &str) -> String {
    format!("it's the \"value\" of {key}: $HOME \\ %s ü")
}

/// Whether an answer is what both databases must hold.
fn holds(answer: &(u16, String), key: &str) -> bool {
    let wanted = serde_json::json!({ "redis": value(key), "postgres": value(key) });
    answer.0 == 200 && serde_json::from_str::<serde_json::Value>(&answer.1).is_ok_and(|found| found == wanted)
}

/// Several clients at once: each request must be answered, and rightly. The keys that were written.
fn load(round: &str, requests: usize) -> Vec<String> {
    let client = |number: usize| {
        let mut client = Client::connect().unwrap();
        let keys = (0..requests / CLIENTS / 2).map(|item| format!("{round}-{number}-{item}"));
        keys.inspect(|key| {
            for (method, content) in [("PUT", value(key)), ("GET", String::new())] {
                let answer = client.ask(method, &format!("/items/{key}"), &content);
                assert!(answer.as_ref().is_ok_and(|answer| holds(answer, key)), "{method} {key}: {answer:?}");
            }
        })
        .collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Asks for one item until it is told to stop. An error is an answer, while a service is away; a wrong
/// content is none.
fn never_wrong(stop: &AtomicBool, key: &str) {
    while !stop.load(Ordering::Relaxed) {
        let answer = Client::connect().and_then(|mut client| client.ask("GET", &format!("/items/{key}"), ""));
        if let Ok(answer) = answer {
            assert!(answer.0 >= 500 || holds(&answer, key), "{answer:?}");
        }
        // It is there to see the restart, not to be in its way.
        std::thread::sleep(Duration::from_secs(3));
    }
}

fn restart(application: &Application, service: &str, key: &str) {
    let format = "{{.State.Pid}} {{.State.StartedAt}}";
    let before: Vec<String> = SERVICES.map(|service| application.inspect(service, format)).to_vec();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| never_wrong(&stop, key));
        let restarted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            application.compose(&["restart", service]).ok();
            application.await_health(service);
        }));
        stop.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
        restarted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    for (other, before) in SERVICES.into_iter().zip(before) {
        let same = application.inspect(other, format) == before;
        assert_eq!(same, other != service, "{other} after the restart of {service}");
    }
}

fn an_application_of_four_services(engine: Engine) {
    let application = Application::start();
    let boots: BTreeSet<String> = SERVICES
        .map(|service| {
            assert_eq!(application.inspect(service, "{{.HostConfig.Runtime}}"), runtime());
            let container = application.container(service);
            engine.command(&["exec", &container, "cat", "/proc/sys/kernel/random/boot_id"]).run().ok()
        })
        .into();
    assert_eq!(boots.len(), if has_vm() { SERVICES.len() } else { 1 }, "each has a VM of its own");

    let mut keys = load("start", 160);
    for service in SERVICES {
        restart(&application, service, &keys[0]);
        keys.extend(load(service, 48));
    }
    let mut client = Client::connect().unwrap();
    assert_eq!(client.ask("GET", "/count", "").unwrap(), (200, keys.len().to_string()));
    for key in keys.iter().step_by(5) {
        let answer = client.ask("GET", &format!("/items/{key}"), "").unwrap();
        assert!(holds(&answer, key), "{key}: {answer:?}");
    }

    application.compose(&["down", "--volumes"]).ok();
    assert_eq!(application.parts(), "");
}
