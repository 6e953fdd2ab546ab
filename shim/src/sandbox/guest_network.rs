//! The part of a sandbox's VM that the network code uses.

use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pouch_protocol::STREAM_PORT;
use pouch_protocol::agent::{ConnectPortRequest, ForwardResolverRequest, SetNetworkRequest};
use pouch_vmm_api::config::NetworkConfig;

use super::Sandbox;
use super::agent::random_bytes;
use crate::network::{Guest, GuestError};

/// How long the agent may take to listen.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Guest for Sandbox {
    fn plug_network(
        &self,
        tap: &File,
        vhost: Option<&File>,
        config: NetworkConfig,
    ) -> Result<u32, GuestError> {
        Ok(self.vm.plug_network(tap, vhost, config)?)
    }

    fn set_network(&self, request: SetNetworkRequest) -> Result<(), GuestError> {
        Ok(self.agent.set_network(request)?)
    }

    fn forward_resolver(&self, address: Ipv4Addr) -> Result<UnixStream, GuestError> {
        let token = new_token()?;
        let mut request = ForwardResolverRequest::new();
        request.address = address.to_string();
        request.token = token;
        self.agent.forward_resolver(request)?;
        self.connect_stream(token)
    }

    fn connect_port(&self, port: u16) -> Result<UnixStream, GuestError> {
        let token = new_token()?;
        let mut request = ConnectPortRequest::new();
        request.port = port.into();
        request.token = token;
        self.agent.connect_port(request)?;
        self.connect_stream(token)
    }
}

impl Sandbox {
    /// Connects the stream that a request announced.
    fn connect_stream(&self, token: u64) -> Result<UnixStream, GuestError> {
        let mut stream = self.vm.connect(STREAM_PORT, CONNECT_TIMEOUT)?;
        stream.write_all(&token.to_le_bytes())?;
        Ok(stream)
    }
}

fn new_token() -> io::Result<u64> {
    let bytes =
        random_bytes().ok_or_else(|| io::Error::other("the host's random number generator failed"))?;
    Ok(u64::from_le_bytes(bytes).max(1))
}
