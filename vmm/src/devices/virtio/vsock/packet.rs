//! A packet's header (section 5.10.6).

use virtio_vsock::packet::VsockPacket;

use super::HOST_CID;

/// Bytes of a header.
pub const HEADER_LENGTH: u32 = 44;
/// Bytes of payload in one packet.
pub const MAX_PAYLOAD: u32 = 64 * 1024;
/// The type of stream sockets.
const TYPE_STREAM: u16 = 1;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// Open a connection.
    Request = 1,
    /// It is open.
    Response = 2,
    /// It is closed, or never was.
    Reset = 3,
    /// No more reading, or no more writing.
    Shutdown = 4,
    /// Bytes.
    ReadWrite = 5,
    /// Credit update.
    CreditUpdate = 6,
    /// Credit request.
    CreditRequest = 7,
}

impl Operation {
    fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::ReadWrite,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            _ => return None,
        })
    }
}

/// Flag of a shutdown: the sender reads no more.
pub const SHUTDOWN_READ: u32 = 1;
/// Flag of a shutdown: the sender writes no more.
pub const SHUTDOWN_WRITE: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_READ | SHUTDOWN_WRITE;

/// A header, less what is the same in every packet of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The host's port.
    pub host_port: u32,
    /// The guest's port.
    pub guest_port: u32,
    /// What the packet is for.
    pub operation: Operation,
    /// Flags of a shutdown.
    pub flags: u32,
    /// Bytes of payload.
    pub length: u32,
    /// The sender's room in all.
    pub buf_alloc: u32,
    /// Bytes that the sender has processed.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the header of a packet from the guest; nothing if it is not from this guest to the
    /// host, no stream's, or of an unknown kind.
    pub fn read(packet: &VsockPacket<'_, ()>, guest_cid: u64) -> Option<Self> {
        let addressed = packet.src_cid() == guest_cid && packet.dst_cid() == HOST_CID;
        if !addressed || packet.type_() != TYPE_STREAM {
            return None;
        }
        Some(Header {
            host_port: packet.dst_port(),
            guest_port: packet.src_port(),
            operation: Operation::from_raw(packet.op())?,
            flags: packet.flags(),
            length: packet.len(),
            buf_alloc: packet.buf_alloc(),
            fwd_cnt: packet.fwd_cnt(),
        })
    }

    /// Writes the header into a packet for the guest; returns the packet's length in bytes.
    pub fn write(&self, packet: &mut VsockPacket<'_, ()>, guest_cid: u64) -> u32 {
        packet
            .set_src_cid(HOST_CID)
            .set_dst_cid(guest_cid)
            .set_src_port(self.host_port)
            .set_dst_port(self.guest_port)
            .set_len(self.length)
            .set_type(TYPE_STREAM)
            .set_op(self.operation as u16)
            .set_flags(self.flags)
            .set_buf_alloc(self.buf_alloc)
            .set_fwd_cnt(self.fwd_cnt);
        HEADER_LENGTH + self.length
    }
}
