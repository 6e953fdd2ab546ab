//! Common code of devices with their own threads.

use std::io;

use super::VirtQueue;

/// Waits until the driver notifies one of `queues`, and takes the notifications.
///
/// # Errors
/// The error of `poll(2)`.
pub fn wait_for_kick(queues: &[&VirtQueue]) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> = queues
        .iter()
        .map(|queue| libc::pollfd { fd: queue.kick_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the pointer and the count are those of a live vector.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    for (queue, _) in queues.iter().zip(&polled).filter(|(_, polled)| polled.revents != 0) {
        // The descriptor does not block; that it is empty is no error.
        let _ = queue.take_kick();
    }
    Ok(())
}
