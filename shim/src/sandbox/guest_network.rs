//! The part of a sandbox's VM that the network code uses.

use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pouch_protocol::STREAM_PORT;
use pouch_protocol::agent::{ForwardResolverRequest, SetNetworkRequest};
use pouch_vmm_api::config::NetworkConfig;

use super::Sandbox;
use super::agent::random_bytes;
use crate::network::{Guest, GuestError};

/// How long the agent may take to listen.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Guest for Sandbox {
    fn plug_network(&self, tap: &File, config: NetworkConfig) -> Result<u32, GuestError> {
        Ok(self.vm.plug_network(tap, config)?)
    }

    fn set_network(&self, request: SetNetworkRequest) -> Result<(), GuestError> {
        Ok(self.agent.set_network(request)?)
    }

    fn forward_resolver(&self, address: Ipv4Addr) -> Result<UnixStream, GuestError> {
        let bytes =
            random_bytes().ok_or_else(|| io::Error::other("the host's random number generator failed"))?;
        let token = u64::from_le_bytes(bytes).max(1);
        let mut request = ForwardResolverRequest::new();
        request.address = address.to_string();
        request.token = token;
        self.agent.forward_resolver(request)?;
        let mut stream = self.vm.connect(STREAM_PORT, CONNECT_TIMEOUT)?;
        stream.write_all(&token.to_le_bytes())?;
        Ok(stream)
    }
}
