//! The connection's state machine, driven packet by packet.

use std::io::Read;

use super::*;

fn header(operation: Operation, flags: u32) -> Header {
    Header { host_port: 9, guest_port: 5, operation, flags, length: 0, buf_alloc: 1000, fwd_cnt: 0 }
}

fn open() -> (Connection, UnixStream) {
    let (ours, host) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut connection = Connection::new(ours);
    assert_eq!(next(&mut connection).unwrap().0, Operation::Request);
    connection.receive(&header(Operation::Response, 0), None).unwrap();
    (connection, host)
}

/// The next packet as (operation, flags, payload).
fn next(connection: &mut Connection) -> Option<(Operation, u32, Vec<u8>)> {
    let mut room = vec![0u8; 600];
    let packet = connection.next_packet(Some(&VolatileSlice::from(room.as_mut_slice())), 9, 5)?;
    room.truncate(packet.length as usize);
    Some((packet.operation, packet.flags, room))
}

fn send(connection: &mut Connection, bytes: &[u8]) -> Result<(), ProtocolError> {
    let mut bytes = bytes.to_vec();
    let slice = VolatileSlice::from(bytes.as_mut_slice());
    connection.receive(&header(Operation::ReadWrite, 0), Some(&slice))
}

#[test]
fn bytes_go_both_ways() {
    let (mut connection, mut host) = open();
    send(&mut connection, b"from guest").unwrap();
    let mut got = [0; 10];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"from guest");
    host.write_all(b"from host").unwrap();
    connection.on_event(true, false, false);
    assert_eq!(next(&mut connection).unwrap(), (Operation::ReadWrite, 0, b"from host".to_vec()));
    assert_eq!(next(&mut connection), None);
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let (mut connection, mut host) = open();
    host.write_all(&[1; 2000]).unwrap();
    connection.on_event(true, false, false);
    let mut sent = 0;
    while let Some((_, _, payload)) = next(&mut connection) {
        sent += payload.len();
    }
    assert_eq!(sent, 1000);
    let mut update = header(Operation::CreditUpdate, 0);
    update.fwd_cnt = 400;
    connection.receive(&update, None).unwrap();
    assert_eq!(next(&mut connection).unwrap().2.len(), 400);
    assert!(!connection.has_packet());
}

#[test]
fn a_guest_that_claims_to_have_read_the_future_gets_nothing() {
    let (mut connection, mut host) = open();
    host.write_all(b"x").unwrap();
    connection.on_event(true, false, false);
    let mut update = header(Operation::CreditUpdate, 0);
    update.fwd_cnt = 5;
    connection.receive(&update, None).unwrap();
    assert_eq!(next(&mut connection), None);
}

#[test]
fn a_slow_host_makes_the_guest_wait_and_loses_nothing() {
    let (mut connection, mut host) = open();
    let chunk = vec![7u8; 60_000];
    let mut accepted = 0;
    // The guest never sends more than the room that it was told of.
    while connection.buffer.len() + chunk.len() <= BUFFER_SIZE as usize {
        send(&mut connection, &chunk).unwrap();
        accepted += chunk.len();
    }
    assert!(connection.wants_write());
    let mut got = vec![0; 64 * 1024];
    let mut total = 0;
    while total < accepted {
        total += host.read(&mut got).unwrap();
        connection.on_event(false, true, false);
    }
    assert!(!connection.wants_write());
    assert_eq!(next(&mut connection).unwrap().0, Operation::CreditUpdate);
}

#[test]
fn a_guest_that_ignores_its_credit_is_refused() {
    let (mut connection, _host) = open();
    let chunk = vec![7u8; 60_000];
    let refused = (0..100).find_map(|_| send(&mut connection, &chunk).err());
    assert_eq!(refused, Some(ProtocolError));
    assert!(connection.buffer.len() <= BUFFER_SIZE as usize);
}

#[test]
fn each_side_can_end_its_direction() {
    let (mut connection, mut host) = open();
    connection.receive(&header(Operation::Shutdown, SHUTDOWN_WRITE), None).unwrap();
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    host.write_all(b"still").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    connection.on_event(true, false, false);
    assert_eq!(next(&mut connection).unwrap().2, b"still");
    assert_eq!(next(&mut connection).unwrap(), (Operation::Shutdown, SHUTDOWN_WRITE, vec![]));
    assert_eq!(next(&mut connection), None);
}

#[test]
fn a_guest_that_closes_is_answered_and_its_last_bytes_arrive() {
    let (mut connection, mut host) = open();
    send(&mut connection, b"last").unwrap();
    connection.receive(&header(Operation::Shutdown, SHUTDOWN_BOTH), None).unwrap();
    assert_eq!(next(&mut connection).unwrap().0, Operation::Reset);
    assert!(connection.is_over());
    let mut got = Vec::new();
    host.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last");
}

#[test]
fn a_host_that_closes_ends_the_connection_after_its_bytes() {
    let (mut connection, mut host) = open();
    host.write_all(b"bye").unwrap();
    drop(host);
    connection.on_event(true, false, true);
    assert_eq!(next(&mut connection).unwrap().2, b"bye");
    assert_eq!(next(&mut connection).unwrap().1, SHUTDOWN_WRITE);
    connection.on_event(false, false, true);
    assert_eq!(next(&mut connection).unwrap().1, SHUTDOWN_BOTH);
    connection.receive(&header(Operation::Reset, 0), None).unwrap();
    assert!(connection.is_over());
}

#[test]
fn packets_out_of_order_are_refused() {
    let (ours, _host) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(ours);
    assert_eq!(send(&mut connection, b"x"), Err(ProtocolError));
    let (mut connection, _host) = open();
    assert_eq!(connection.receive(&header(Operation::Response, 0), None), Err(ProtocolError));
    assert_eq!(connection.receive(&header(Operation::Request, 0), None), Err(ProtocolError));
    connection.receive(&header(Operation::Shutdown, SHUTDOWN_WRITE), None).unwrap();
    assert_eq!(send(&mut connection, b"x"), Err(ProtocolError));
}

#[test]
fn what_a_host_wrote_before_it_closed_arrives_when_there_is_room() {
    let (mut connection, mut host) = open();
    host.write_all(&[1; 1500]).unwrap();
    drop(host);
    connection.on_event(true, false, true);
    let take = |connection: &mut Connection| {
        let mut taken = 0;
        while let Some((Operation::ReadWrite, _, payload)) = next(connection) {
            taken += payload.len();
        }
        taken
    };
    assert_eq!(take(&mut connection), 1000);
    // What the guest writes meanwhile is nobody's.
    send(&mut connection, b"x").unwrap();
    let mut update = header(Operation::CreditUpdate, 0);
    update.fwd_cnt = 1000;
    connection.receive(&update, None).unwrap();
    let (operation, _, payload) = next(&mut connection).unwrap();
    assert_eq!((operation, payload.len()), (Operation::ReadWrite, 500));
    assert_eq!(next(&mut connection).unwrap().0, Operation::Shutdown);
    assert_eq!(next(&mut connection).unwrap(), (Operation::Shutdown, SHUTDOWN_BOTH, vec![]));
    assert_eq!(next(&mut connection), None);
}

#[test]
fn a_request_that_the_guest_has_not_taken_is_not_made_twice() {
    let (ours, _host) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(ours);
    connection.request_again();
    assert_eq!(next(&mut connection).unwrap().0, Operation::Request);
    assert_eq!(next(&mut connection), None);
    connection.request_again();
    assert_eq!(next(&mut connection).unwrap().0, Operation::Request);
}
