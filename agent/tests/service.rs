//! Tests of the service over a UNIX socket on an ordinary host, as far as it needs no guest.

#![allow(clippy::expect_used)] // a test says by a panic what is missing

use std::sync::Arc;

use pouch_agent::service::{self, Agent};
use pouch_protocol::agent::*;
use pouch_protocol::agent_ttrpc::AgentClient;
use ttrpc::Code;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Client, Server};
use ttrpc::context::with_timeout;

struct Served {
    client: AgentClient,
    _server: Server,
    _directory: tempfile::TempDir,
}

async fn serve() -> Served {
    let directory = tempfile::tempdir().expect("a directory");
    let address = format!("unix://{}", directory.path().join("agent.sock").display());
    let agent: Arc<Agent> = Agent::new();
    agent.mark_ready();
    let mut server = service::server(agent, Listener::bind(&address).expect("a socket"));
    server.start().await.expect("a server");
    let client = Client::connect(&address).await.expect("a connection");
    Served { client: AgentClient::new(client), _server: server, _directory: directory }
}

fn context() -> ttrpc::context::Context {
    with_timeout(10_000_000_000)
}

fn refusal<T>(result: ttrpc::Result<T>) -> (Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[tokio::test]
async fn it_says_what_it_is() {
    let served = serve().await;
    let answer = served.client.check(context(), &CheckRequest::new()).await.expect("an answer");
    assert_eq!(answer.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(!answer.kernel_release.is_empty() && answer.ready_nanoseconds > 0);
    let stats = served.client.guest_stats(context(), &Empty::new()).await.expect("stats");
    assert!(stats.memory_total > stats.memory_free && stats.online_cpus > 0);
}

#[tokio::test]
async fn unknown_containers_and_bad_ids_are_told_apart() {
    let served = serve().await;
    let request = |id: &str| ContainerRequest { container_id: id.to_owned(), ..Default::default() };
    let client = &served.client;
    assert_eq!(refusal(client.start_container(context(), &request("none")).await).0, Code::NOT_FOUND);
    assert_eq!(refusal(client.pause_container(context(), &request("none")).await).0, Code::NOT_FOUND);
    assert_eq!(refusal(client.list_processes(context(), &request("none")).await).0, Code::NOT_FOUND);
    for id in ["", "../x", &"x".repeat(2000)] {
        let (code, message) = refusal(client.start_container(context(), &request(id)).await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(message.starts_with("container_id: "), "{message}");
    }
    client.delete_container(context(), &request("none")).await.expect("deleting nothing is fine");
    let wait = ProcessRequest { container_id: "none".to_owned(), ..Default::default() };
    assert_eq!(refusal(client.wait_process(context(), &wait).await).0, Code::NOT_FOUND);
}

#[tokio::test]
async fn malformed_requests_name_the_field() {
    let served = serve().await;
    let client = &served.client;
    for (spec, field) in [
        (&b""[..], "spec: "),
        (b"{", "spec: "),
        (br#"{"ociVersion":"1.0.0"}"#, "root: "),
        (br#"{"ociVersion":"1.0.0","root":{"path":"/r"}}"#, "process: "),
    ] {
        let request = CreateContainerRequest {
            container_id: "c".to_owned(),
            spec: spec.to_vec(),
            ..Default::default()
        };
        let (code, message) = refusal(client.create_container(context(), &request).await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(message.starts_with(field), "{message}");
    }
    let storage =
        Storage { driver: "tmpfs".to_owned(), mount_point: "/etc".to_owned(), ..Default::default() };
    let request = MountStorageRequest { storage: Some(storage).into(), ..Default::default() };
    let (code, message) = refusal(client.mount_storage(context(), &request).await);
    assert!(code == Code::INVALID_ARGUMENT && message.starts_with("storage.mount_point: "), "{message}");
    let entropy = AddEntropyRequest { data: vec![0; 5000], ..Default::default() };
    let (_, message) = refusal(client.add_entropy(context(), &entropy).await);
    assert!(message.starts_with("entropy.data: "), "{message}");
    let network = SetNetworkRequest {
        interfaces: vec![Interface { name: "eth0".to_owned(), mac: "x".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    let (_, message) = refusal(client.set_network(context(), &network).await);
    assert!(message.starts_with("network.interfaces[0].mac: "), "{message}");
    let unmount = UnmountStorageRequest { mount_point: "/run/pouch/x".to_owned(), ..Default::default() };
    assert_eq!(refusal(client.unmount_storage(context(), &unmount).await).0, Code::NOT_FOUND);
}

/// Whatever bytes arrive, the service goes on.
#[tokio::test]
async fn garbage_does_not_stop_it() {
    use tokio::io::AsyncWriteExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("agent.sock");
    let address = format!("unix://{}", path.display());
    let mut server = service::server(Agent::new(), Listener::bind(&address).expect("a socket"));
    server.start().await.expect("a server");
    let mut state = 1_u32;
    for length in [1, 9, 10, 11, 64, 5000] {
        let mut stream = tokio::net::UnixStream::connect(&path).await.expect("a connection");
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(length)
        .collect();
        // The server may close first.
        let _ = stream.write_all(&bytes).await;
    }
    let client = AgentClient::new(Client::connect(&address).await.expect("a connection"));
    client.check(context(), &CheckRequest::new()).await.expect("an answer");
}
