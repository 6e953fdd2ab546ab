//! A container of a pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1::{
    AttachRequest, ContainerConfig, ContainerMetadata, ContainerState, ContainerStats, ContainerStatsRequest,
    ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ExecRequest, ExecSyncRequest, ImageSpec,
    KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    NamespaceOption, RemoveContainerRequest, SecurityProfile, StartContainerRequest, StopContainerRequest,
    UpdateContainerResourcesRequest,
};
use tonic::Status;

use super::{Node, Pod, Stream};
use crate::eventually_every;

/// A container that is to be created. It has what the kubelet gives each one.
pub struct ContainerBuilder<'a> {
    pod: &'a Pod<'a>,
    config: ContainerConfig,
}

impl<'a> ContainerBuilder<'a> {
    pub(super) fn new(pod: &'a Pod<'a>, name: &str) -> Self {
        let sandbox = pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let namespaces = sandbox.and_then(|context| context.namespace_options.clone());
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: crate::containerd::IMAGE.to_owned(), ..Default::default() }),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: namespaces,
                    // RuntimeDefault.
                    seccomp: Some(SecurityProfile::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        ContainerBuilder { pod, config }.sh(IDLE)
    }

    /// Runs this command.
    pub fn command(mut self, command: &[&str]) -> Self {
        self.config.command = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Runs this shell script.
    pub fn sh(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue { key: key.to_owned(), value: value.to_owned() });
        self
    }

    /// Mounts a path of the host.
    pub fn mount(self, host: &Path, container: &str) -> Self {
        self.mount_as(host, container, false)
    }

    /// Mounts a path of the host without the right to write there.
    pub fn mount_read_only(self, host: &Path, container: &str) -> Self {
        self.mount_as(host, container, true)
    }

    fn mount_as(self, host: &Path, container: &str, readonly: bool) -> Self {
        let mount = Mount {
            host_path: host.display().to_string(),
            container_path: container.to_owned(),
            readonly,
            ..Default::default()
        };
        self.with(|config| config.mounts.push(mount))
    }

    /// Changes its configuration in another way.
    pub fn with(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes its security context.
    pub fn security(self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        self.with(|config| {
            change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
        })
    }

    /// Changes its namespaces.
    pub fn namespaces(self, change: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.security(|security| change(security.namespace_options.get_or_insert_default()))
    }

    /// Limits its memory, in MiB.
    pub fn memory(self, mib: i64) -> Self {
        self.with(|config| {
            let linux = config.linux.get_or_insert_default();
            linux.resources.get_or_insert_default().memory_limit_in_bytes = mib << 20;
        })
    }

    /// Makes it one that replaces a container of the same name.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.get_or_insert_default().attempt = attempt;
        self
    }

    /// Creates it.
    #[track_caller]
    pub fn create(self) -> Container<'a> {
        let node = self.pod.node();
        self.try_create().unwrap_or_else(|status| panic!("CreateContainer: {status}\n{}", node.log_tail()))
    }

    /// Creates it, or returns why it is not created.
    ///
    /// # Errors
    /// containerd's.
    pub fn try_create(self) -> Result<Container<'a>, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(self.config.clone()),
            sandbox_config: Some(self.pod.config.clone()),
        };
        let node = self.pod.node();
        let made = node.call(async |mut client| client.create_container(request).await)?;
        let log = self.pod.logs().join(&self.config.log_path);
        Ok(Container { node, id: made.container_id, log })
    }

    /// Creates and starts it.
    #[track_caller]
    pub fn start(self) -> Container<'a> {
        let container = self.create();
        container.start();
        container
    }

    /// Creates and starts it, or returns why it does not run.
    ///
    /// # Errors
    /// containerd's.
    pub fn try_start(self) -> Result<Container<'a>, Status> {
        let container = self.try_create()?;
        container.try_start()?;
        Ok(container)
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Ended {
        let container = self.start();
        container.await_end();
        let ended = container.ended();
        container.remove();
        ended
    }
}

/// What a container does that only waits to be ended.
const IDLE: &str = "trap 'exit 7' TERM; while :; do sleep 1000 & wait; done";

/// A container of a pod. It is removed with the pod.
pub struct Container<'a> {
    node: &'a Node,
    /// Its ID.
    pub id: String,
    log: PathBuf,
}

/// How a container ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: i32,
    /// `Completed`, `Error`, `OOMKilled`.
    pub reason: String,
    /// What it wrote to its standard output, without the white space at the end.
    pub stdout: String,
    /// The same for its standard error.
    pub stderr: String,
}

/// What a command of `exec` said, and how it ended.
#[derive(Debug)]
pub struct Executed {
    /// Its exit status.
    pub status: i32,
    /// Its standard output, without the white space at the end.
    pub stdout: String,
    /// The same for its standard error.
    pub stderr: String,
}

/// A line of a container's log.
#[derive(Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Without the line feed.
    pub text: String,
}

impl<'a> Container<'a> {
    /// A container that exists. Its log is not known.
    pub(super) fn of(node: &'a Node, id: String) -> Self {
        Container { node, id, log: PathBuf::new() }
    }

    /// Starts it.
    #[track_caller]
    pub fn start(&self) {
        self.try_start()
            .unwrap_or_else(|status| panic!("StartContainer: {status}\n{}", self.node.log_tail()));
    }

    /// Starts it, or returns why it does not start.
    ///
    /// # Errors
    /// containerd's.
    pub fn try_start(&self) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: self.id.clone() };
        self.node.call(async |mut client| client.start_container(request).await).map(drop)
    }

    /// What CRI tells of it.
    #[track_caller]
    pub fn status(&self) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let response = self.node.call(async |mut client| client.container_status(request).await);
        response.unwrap().status.expect("it has a status")
    }

    /// Whether it runs.
    #[track_caller]
    pub fn runs(&self) -> bool {
        self.status().state() == ContainerState::ContainerRunning
    }

    /// Waits for its end.
    #[track_caller]
    pub fn await_end(&self) {
        eventually_every(Duration::from_millis(100), "the container ends", || {
            self.status().state() == ContainerState::ContainerExited
        });
    }

    /// How it ended.
    #[track_caller]
    pub fn ended(&self) -> Ended {
        let status = self.status();
        let of = |stream: &str| {
            let lines = self.log().into_iter().filter(|line| line.stream == stream);
            lines.map(|line| line.text).collect::<Vec<_>>().join("\n").trim_end().to_owned()
        };
        Ended { status: status.exit_code, reason: status.reason, stdout: of("stdout"), stderr: of("stderr") }
    }

    /// The lines of its log, as the kubelet reads them: `TIME STREAM TAG TEXT`.
    #[track_caller]
    pub fn log(&self) -> Vec<LogLine> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines = text.lines().map(|line| {
            let mut fields = line.splitn(4, ' ').skip(1);
            let stream = fields.next().unwrap_or_default().to_owned();
            LogLine { stream, text: fields.nth(1).unwrap_or_default().to_owned() }
        });
        lines.collect()
    }

    /// The file of its log.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Runs a command in it.
    ///
    /// # Errors
    /// containerd's, for instance when the command takes longer than `seconds`; 0 is no limit.
    pub fn try_exec(&self, command: &[&str], seconds: i64) -> Result<Executed, Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: self.id.clone(), cmd, timeout: seconds };
        let response = self.node.call(async |mut client| client.exec_sync(request).await)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Ok(Executed {
            status: response.exit_code,
            stdout: text(&response.stdout),
            stderr: text(&response.stderr),
        })
    }

    /// Runs a shell script in it.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Executed {
        self.try_exec(&["/bin/sh", "-c", script], 0).unwrap_or_else(|e| panic!("exec {script}: {e}"))
    }

    /// Runs a shell script in it that must succeed; returns what it writes.
    #[track_caller]
    pub fn exec(&self, script: &str) -> String {
        let executed = self.sh(script);
        assert_eq!(executed.status, 0, "{script}: {executed:?}");
        executed.stdout
    }

    /// Runs a command in it, whose streams go through containerd's streaming server, as `kubectl exec -i` does.
    #[track_caller]
    pub fn exec_stream(&self, command: &[&str], tty: bool) -> Stream {
        let request = ExecRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        Stream::to_process(&self.node.call(async |mut client| client.exec(request).await).unwrap().url)
    }

    /// Attaches to its streams, as `kubectl attach -i` does.
    #[track_caller]
    pub fn attach(&self) -> Stream {
        let request = AttachRequest {
            container_id: self.id.clone(),
            stdin: true,
            tty: false,
            stdout: true,
            stderr: true,
        };
        Stream::to_process(&self.node.call(async |mut client| client.attach(request).await).unwrap().url)
    }

    /// The PID of the process that stands for it on the host.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        super::daemon::pid_of(self.node.version(), &self.id)
    }

    /// The use of resources that CRI tells of it.
    #[track_caller]
    pub fn stats(&self) -> ContainerStats {
        let request = ContainerStatsRequest { container_id: self.id.clone() };
        self.node
            .call(async |mut client| client.container_stats(request).await)
            .unwrap()
            .stats
            .expect("statistics")
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// containerd's.
    pub fn update(&self, resources: LinuxContainerResources) -> Result<(), Status> {
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        self.node.call(async |mut client| client.update_container_resources(request).await).map(drop)
    }

    /// Asks it to end, and kills it after so many seconds.
    ///
    /// # Errors
    /// containerd's.
    pub fn try_stop(&self, seconds: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout: seconds };
        self.node.call(async |mut client| client.stop_container(request).await).map(drop)
    }

    /// Removes it.
    #[track_caller]
    pub fn remove(&self) {
        let request = RemoveContainerRequest { container_id: self.id.clone() };
        self.node.call(async |mut client| client.remove_container(request).await).unwrap();
    }
}
